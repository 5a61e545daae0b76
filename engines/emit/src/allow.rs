//! The instructions that a stub may run: an explicit list, by mnemonic.
//!
//! Only what is listed here is ever copied to the host (legacy and VEX encodings alone, see
//! [`crate::properties`]). What would tell the host's own state instead of the guest's (FXSAVE,
//! FNSTENV, RDTSC, XGETBV), change it (LDMXCSR), or touch memory outside the operand buffer
//! (gathers, masked stores) is absent.

use iced_x86::Mnemonic;

macro_rules! mnemonics {
    ($(#[$doc:meta])* $name:ident { $($mnemonic:ident)* }) => {
        $(#[$doc])*
        pub(crate) fn $name(mnemonic: Mnemonic) -> bool {
            matches!(mnemonic, $(Mnemonic::$mnemonic)|*)
        }
    };
}

mnemonics! {
    /// x87 instructions (SDM volume 1, 8.3). Those with an environment operand are in [`crate::x87_env`].
    x87 {
        F2xm1 Fabs Fadd Faddp Fbld Fbstp Fchs Fcmovb Fcmovbe Fcmove Fcmovnb Fcmovnbe Fcmovne
        Fcmovnu Fcmovu Fcom Fcomi Fcomip Fcomp Fcompp Fcos Fdecstp Fdiv Fdivp Fdivr Fdivrp
        Ffree Ffreep Fiadd Ficom Ficomp Fidiv Fidivr Fild Fimul Fincstp Fist Fistp Fisttp
        Fisub Fisubr Fld Fld1 Fldcw Fldl2e Fldl2t Fldlg2 Fldln2 Fldpi Fldz Fmul Fmulp Fnclex
        Fndisi Fneni Fninit Fnop Fnsetpm Fnstcw Fnstsw Fpatan Fprem Fprem1 Fptan Frndint
        Fscale Fsin Fsincos Fsqrt Fst Fstp Fstpnce Fsub Fsubp Fsubr Fsubrp Ftst Fucom Fucomi
        Fucomip Fucomp Fucompp Fxam Fxch Fxtract Fyl2x Fyl2xp1 Wait
    }
}

mnemonics! {
    /// MMX and SSE instructions that depend on MXCSR or can raise SIMD floating-point exceptions.
    legacy_simd_fp {
        Addpd Addps Addsd Addss Addsubpd Addsubps Cmppd Cmpps Cmpsd Cmpss Comisd Comiss Cvtdq2ps
        Cvtpd2dq
        Cvtpd2pi Cvtpd2ps Cvtpi2pd Cvtpi2ps Cvtps2dq Cvtps2pd Cvtps2pi Cvtsd2si Cvtsd2ss
        Cvtsi2sd Cvtsi2ss Cvtss2sd Cvtss2si Cvttpd2dq Cvttpd2pi Cvttps2dq Cvttps2pi Cvttsd2si
        Cvttss2si Divpd Divps Divsd Divss Dppd Dpps Haddpd Haddps Hsubpd Hsubps Maxpd Maxps
        Maxsd Maxss Minpd Minps Minsd Minss Mulpd Mulps Mulsd Mulss Roundpd Roundps Roundsd
        Roundss Sqrtpd Sqrtps Sqrtsd Sqrtss Subpd Subps Subsd Subss Ucomisd Ucomiss
    }
}

mnemonics! {
    /// MMX and SSE instructions that neither read nor change MXCSR.
    legacy_simd {
        Aesdec Aesdeclast Aesenc Aesenclast Aesimc Aeskeygenassist Andnpd Andnps Andpd Andps
        Blendpd Blendps Blendvpd Blendvps Cvtdq2pd Emms Extractps
        Gf2p8affineinvqb Gf2p8affineqb Gf2p8mulb Insertps Lddqu Movapd Movaps Movd Movddup
        Movdq2q Movdqa Movdqu Movhlps Movhpd Movhps Movlhps Movlpd Movlps Movmskpd Movmskps
        Movntdq Movntdqa Movntpd Movntps Movntq Movq Movq2dq Movsd Movshdup Movsldup Movss
        Movupd Movups Mpsadbw Orpd Orps Pabsb Pabsd Pabsw Packssdw Packsswb Packusdw Packuswb
        Paddb Paddd Paddq Paddsb Paddsw Paddusb Paddusw Paddw Palignr Pand Pandn Pavgb Pavgw
        Pblendvb Pblendw Pclmulqdq Pcmpeqb Pcmpeqd Pcmpeqq Pcmpeqw Pcmpestri Pcmpestri64
        Pcmpestrm Pcmpestrm64 Pcmpgtb Pcmpgtd Pcmpgtq Pcmpgtw Pcmpistri Pcmpistrm Pextrb
        Pextrd Pextrq Pextrw Phaddd Phaddsw Phaddw Phminposuw Phsubd Phsubsw Phsubw Pinsrb
        Pinsrd Pinsrq Pinsrw Pmaddubsw Pmaddwd Pmaxsb Pmaxsd Pmaxsw Pmaxub Pmaxud Pmaxuw
        Pminsb Pminsd Pminsw Pminub Pminud Pminuw Pmovmskb Pmovsxbd Pmovsxbq Pmovsxbw Pmovsxdq
        Pmovsxwd Pmovsxwq Pmovzxbd Pmovzxbq Pmovzxbw Pmovzxdq Pmovzxwd Pmovzxwq Pmuldq
        Pmulhrsw Pmulhuw Pmulhw Pmulld Pmullw Pmuludq Por Psadbw Pshufb Pshufd Pshufhw Pshuflw
        Pshufw Psignb Psignd Psignw Pslld Pslldq Psllq Psllw Psrad Psraw Psrld Psrldq Psrlq
        Psrlw Psubb Psubd Psubq Psubsb Psubsw Psubusb Psubusw Psubw Ptest Punpckhbw Punpckhdq
        Punpckhqdq Punpckhwd Punpcklbw Punpckldq Punpcklqdq Punpcklwd Pxor Rcpps Rcpss Rsqrtps
        Rsqrtss Sha1msg1 Sha1msg2 Sha1nexte Sha1rnds4 Sha256msg1 Sha256msg2 Sha256rnds2 Shufpd
        Shufps Unpckhpd Unpckhps Unpcklpd Unpcklps Xorpd Xorps
    }
}

mnemonics! {
    /// AVX and FMA instructions that depend on MXCSR or can raise SIMD floating-point exceptions.
    vex_simd_fp {
        Vaddpd Vaddps Vaddsd Vaddss Vaddsubpd Vaddsubps Vcmppd Vcmpps Vcmpsd Vcmpss Vcomisd Vcomiss
        Vcvtdq2ps
        Vcvtpd2dq Vcvtpd2ps Vcvtph2ps Vcvtps2dq Vcvtps2pd Vcvtps2ph Vcvtsd2si Vcvtsd2ss
        Vcvtsi2sd Vcvtsi2ss Vcvtss2sd Vcvtss2si Vcvttpd2dq Vcvttps2dq Vcvttsd2si Vcvttss2si
        Vdivpd Vdivps Vdivsd Vdivss Vdppd Vdpps Vfmadd132pd Vfmadd132ps Vfmadd132sd
        Vfmadd132ss Vfmadd213pd Vfmadd213ps Vfmadd213sd Vfmadd213ss Vfmadd231pd Vfmadd231ps
        Vfmadd231sd Vfmadd231ss Vfmaddsub132pd Vfmaddsub132ps Vfmaddsub213pd Vfmaddsub213ps
        Vfmaddsub231pd Vfmaddsub231ps Vfmsub132pd Vfmsub132ps Vfmsub132sd Vfmsub132ss
        Vfmsub213pd Vfmsub213ps Vfmsub213sd Vfmsub213ss Vfmsub231pd Vfmsub231ps Vfmsub231sd
        Vfmsub231ss Vfmsubadd132pd Vfmsubadd132ps Vfmsubadd213pd Vfmsubadd213ps Vfmsubadd231pd
        Vfmsubadd231ps Vfnmadd132pd Vfnmadd132ps Vfnmadd132sd Vfnmadd132ss Vfnmadd213pd
        Vfnmadd213ps Vfnmadd213sd Vfnmadd213ss Vfnmadd231pd Vfnmadd231ps Vfnmadd231sd
        Vfnmadd231ss Vfnmsub132pd Vfnmsub132ps Vfnmsub132sd Vfnmsub132ss Vfnmsub213pd
        Vfnmsub213ps Vfnmsub213sd Vfnmsub213ss Vfnmsub231pd Vfnmsub231ps Vfnmsub231sd
        Vfnmsub231ss Vhaddpd Vhaddps Vhsubpd Vhsubps Vmaxpd Vmaxps Vmaxsd Vmaxss Vminpd Vminps
        Vminsd Vminss Vmulpd Vmulps Vmulsd Vmulss Vroundpd Vroundps Vroundsd Vroundss Vsqrtpd
        Vsqrtps Vsqrtsd Vsqrtss Vsubpd Vsubps Vsubsd Vsubss Vucomisd Vucomiss
    }
}

mnemonics! {
    /// AVX and AVX2 instructions that neither read nor change MXCSR.
    vex_simd {
        Vaesdec Vaesdeclast Vaesenc Vaesenclast Vaesimc Vaeskeygenassist Vandnpd Vandnps
        Vandpd Vandps Vblendpd Vblendps Vblendvpd Vblendvps Vbroadcastf128 Vbroadcasti128
        Vbroadcastsd Vbroadcastss Vcvtdq2pd Vextractf128 Vextracti128
        Vextractps Vgf2p8affineinvqb Vgf2p8affineqb Vgf2p8mulb Vinsertf128 Vinserti128
        Vinsertps Vlddqu Vmovapd Vmovaps Vmovd Vmovddup Vmovdqa Vmovdqu Vmovhlps Vmovhpd
        Vmovhps Vmovlhps Vmovlpd Vmovlps Vmovmskpd Vmovmskps Vmovntdq Vmovntdqa Vmovntpd
        Vmovntps Vmovq Vmovsd Vmovshdup Vmovsldup Vmovss Vmovupd Vmovups Vmpsadbw Vorpd Vorps
        Vpabsb Vpabsd Vpabsw Vpackssdw Vpacksswb Vpackusdw Vpackuswb Vpaddb Vpaddd Vpaddq
        Vpaddsb Vpaddsw Vpaddusb Vpaddusw Vpaddw Vpalignr Vpand Vpandn Vpavgb Vpavgw Vpblendd
        Vpblendvb Vpblendw Vpbroadcastb Vpbroadcastd Vpbroadcastq Vpbroadcastw Vpclmulqdq
        Vpcmpeqb Vpcmpeqd Vpcmpeqq Vpcmpeqw Vpcmpestri Vpcmpestri64 Vpcmpestrm Vpcmpestrm64
        Vpcmpgtb Vpcmpgtd Vpcmpgtq Vpcmpgtw Vpcmpistri Vpcmpistrm Vperm2f128 Vperm2i128 Vpermd
        Vpermilpd Vpermilps Vpermpd Vpermps Vpermq Vpextrb Vpextrd Vpextrq Vpextrw Vphaddd
        Vphaddsw Vphaddw Vphminposuw Vphsubd Vphsubsw Vphsubw Vpinsrb Vpinsrd Vpinsrq Vpinsrw
        Vpmaddubsw Vpmaddwd Vpmaxsb Vpmaxsd Vpmaxsw Vpmaxub Vpmaxud Vpmaxuw Vpminsb Vpminsd
        Vpminsw Vpminub Vpminud Vpminuw Vpmovmskb Vpmovsxbd Vpmovsxbq Vpmovsxbw Vpmovsxdq
        Vpmovsxwd Vpmovsxwq Vpmovzxbd Vpmovzxbq Vpmovzxbw Vpmovzxdq Vpmovzxwd Vpmovzxwq
        Vpmuldq Vpmulhrsw Vpmulhuw Vpmulhw Vpmulld Vpmullw Vpmuludq Vpor Vpsadbw Vpshufb
        Vpshufd Vpshufhw Vpshuflw Vpsignb Vpsignd Vpsignw Vpslld Vpslldq Vpsllq Vpsllvd
        Vpsllvq Vpsllw Vpsrad Vpsravd Vpsraw Vpsrld Vpsrldq Vpsrlq Vpsrlvd Vpsrlvq Vpsrlw
        Vpsubb Vpsubd Vpsubq Vpsubsb Vpsubsw Vpsubusb Vpsubusw Vpsubw Vptest Vpunpckhbw
        Vpunpckhdq Vpunpckhqdq Vpunpckhwd Vpunpcklbw Vpunpckldq Vpunpcklqdq Vpunpcklwd Vpxor
        Vrcpps Vrcpss Vrsqrtps Vrsqrtss Vshufpd Vshufps Vtestpd Vtestps Vunpckhpd Vunpckhps
        Vunpcklpd Vunpcklps Vxorpd Vxorps
    }
}

mnemonics! {
    /// Instructions on general registers and memory only.
    general {
        Adcx Adox Andn Bextr Blsi Blsmsk Blsr Bzhi Crc32 Lzcnt Movbe Movnti Mulx Pdep Pext
        Popcnt Rorx Sarx Shlx Shrx Tzcnt
    }
}
