/* The table of benchmarks: X(name, group, unit, per_n, setup, run, check_n) */
#define CPU_TABLE \
 X(interp,   cpu, NS_OP, 24,     0, k_interp, 1000) \
 X(chase-l1, cpu, NS_OP, 1000,   k_chase_setup, k_chase_l1, 10) \
 X(chase-l2, cpu, NS_OP, 1000,   k_chase_setup, k_chase_l2, 10) \
 X(chase-ram,cpu, NS_OP, 1000,   k_chase_setup, k_chase_ram, 10) \
 X(coremix,  cpu, NS_OP, 1,      0, k_coremix, 50) \
 X(lz,       cpu, MB_S,  65536,  k_lz_setup, k_lz, 2) \
 X(sha256,   cpu, MB_S,  4096,   0, k_sha256, 20) \
 X(aesni,    cpu, MB_S,  16384,  0, k_aesni, 20) \
 X(nbody,    cpu, NS_OP, 100,    0, k_nbody, 20) \
 X(matmul,   cpu, NS_OP, 1,      0, k_matmul, 5) \
 X(fib,      cpu, NS_OP, 21891,  0, k_fib, 3) \
 X(virtual,  cpu, NS_OP, 256,    0, k_virtual, 50) \
 X(sortcb,   cpu, NS_OP, 1024,   0, k_sortcb, 5) \
 X(tree,     cpu, NS_OP, 8192,   0, k_tree, 2) \
 X(hash,     cpu, NS_OP, 4096,   0, k_hash, 2) \
 X(bytesum,  cpu, MB_S,  1 << 20,k_mem_setup, k_bytesum, 1) \
 X(memcpy,   cpu, MB_S,  1 << 20,k_mem_setup, k_memcpy, 3) \
 X(memset,   cpu, MB_S,  1 << 20,k_mem_setup, k_memset, 3) \
 X(repmovs,  cpu, MB_S,  1 << 20,k_mem_setup, k_repmovs, 3)
#define LIB_TABLE \
 X(deflate,  lib, MB_S,  131072, l_zlib_setup, l_deflate, 1) \
 X(inflate,  lib, MB_S,  131072, l_inflate_setup, l_inflate, 1) \
 X(sqlite,   lib, NS_OP, 2500,   0, l_sqlite, 1)
#define SYS_TABLE \
 X(getppid,  sys, NS_OP, 1, 0, s_getppid, 200) \
 X(clock,    sys, NS_OP, 1, 0, s_clock, 200) \
 X(stat,     sys, NS_OP, 1, 0, s_stat, 100) \
 X(read1,    sys, NS_OP, 1, s_file_setup, s_read1, 100) \
 X(write4k,  sys, NS_OP, 1, s_file_setup, s_write4k, 100) \
 X(pagefault,sys, NS_OP, 16384, 0, s_pagefault, 1) \
 X(mmap1,    sys, NS_OP, 1, 0, s_mmap, 100) \
 X(mprotect, sys, NS_OP, 1, s_mprotect_setup, s_mprotect, 100) \
 X(fork,     sys, NS_OP, 1, 0, s_fork, 5) \
 X(forkexec, sys, NS_OP, 1, 0, s_forkexec, 3) \
 X(pipe,     sys, NS_OP, 1, 0, s_pipe, 50) \
 X(futex,    sys, NS_OP, 1, 0, s_futex, 20) \
 X(signal,   sys, NS_OP, 1, s_signal_setup, s_signal, 100) \
 X(segv,     sys, NS_OP, 1, s_segv_setup, s_segv, 50) \
 X(smc,      sys, NS_OP, 1, s_smc_setup, s_smc, 100) \
 X(jit,      sys, NS_OP, 32, s_jit_setup, s_jit, 20) \
 X(atomic1,  sys, NS_OP, 1000, 0, s_atomic1, 5) \
 X(atomic2,  sys, NS_OP, 1000, 0, s_atomic2, 5) \
 X(par1,     sys, NS_OP, 24000, 0, s_par1, 2) \
 X(par2,     sys, NS_OP, 24000, 0, s_par2, 2) \
 X(proc2,    sys, NS_OP, 24000, 0, s_proc2, 2)
