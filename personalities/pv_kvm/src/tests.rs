//! Against a reader of the clock's ABI that shares nothing with the writer.

use super::*;
use guest_mem::{Change, Memfd, Slot};

const KHZ: u32 = 2_100_000;

fn memory() -> Arc<GuestMem> {
    let memory = GuestMem::new(1 << 20).unwrap();
    let mem = Memfd::new(0x4000).unwrap();
    let slot = Slot { id: 0, gpa: 0x1000, mem, offset: 0, len: 0x4000, writable: true };
    memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
    memory
}

struct Vm {
    pv: Arc<PvKvm>,
    memory: Arc<GuestMem>,
    now: Arc<Mutex<ClockSample>>,
}

fn vm() -> Vm {
    let now = Arc::new(Mutex::new(ClockSample {
        guest_ns: 5_000_000_000,
        tsc: 77_000_000_000,
        khz: KHZ,
        realtime_ns: 1_700_000_000_123_456_789,
    }));
    let memory = memory();
    let clock = now.clone();
    let all = Features(!0);
    let source: ClockSource = Arc::new(move || *clock.lock().unwrap());
    Vm { pv: PvKvm::new(memory.clone(), source, all, 2), memory, now }
}

impl Vm {
    fn bytes<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut out = [0; N];
        self.memory.read(gpa, &mut out).unwrap();
        out
    }

    fn u32(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(self.bytes(gpa))
    }

    fn u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.bytes(gpa))
    }

    /// As the document's reader does, in 128 bits instead of a split multiplication.
    fn read_clock(&self, gpa: u64, tsc: u64) -> u64 {
        assert_eq!(self.u32(gpa) & 1, 0, "not being written");
        let delta = tsc - self.u64(gpa + 8);
        let shift = self.bytes::<1>(gpa + 28)[0] as i8;
        let shifted = if shift < 0 { delta >> -shift } else { delta << shift };
        let scaled = (u128::from(shifted) * u128::from(self.u32(gpa + 24))) >> 32;
        self.u64(gpa + 16) + scaled as u64
    }
}

#[test]
fn the_clock_runs_with_the_tsc() {
    let vm = vm();
    let gpa = 0x1040;
    vm.pv.wrmsr(0, msr::KVM_SYSTEM_TIME_NEW, gpa | 1).unwrap().unwrap();
    for seconds in [0, 1, 3600] {
        let tsc = 77_000_000_000 + seconds * u64::from(KHZ) * 1000;
        let want = 5_000_000_000 + seconds * 1_000_000_000;
        let off = vm.read_clock(gpa, tsc).abs_diff(want);
        assert!(off <= 1 + seconds, "{seconds} s: off by {off} ns");
    }
    assert_eq!(vm.bytes::<1>(gpa + 29)[0], TimeInfo::TSC_STABLE);
    assert_eq!(vm.pv.rdmsr(0, msr::KVM_SYSTEM_TIME).unwrap().unwrap(), gpa | 1);
}

#[test]
fn the_scale_is_exact_to_32_bits() {
    for khz in [1, 1000, 999_999, 1_000_000, 1_000_001, 2_095_078, 4_000_000, u32::MAX] {
        let (mul, shift) = time_scale(khz);
        assert!(mul >= 1 << 31);
        // One second of ticks gives a second, to a part in 2^31.
        let ticks = u128::from(khz) * 1000;
        let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
        let ns = (shifted * u128::from(mul)) >> 32;
        assert!(ns.abs_diff(1_000_000_000) <= 1 + u128::from(1_000_000 / khz), "{khz}: {ns}");
    }
    time_scale(0);
}

#[test]
fn a_refresh_is_a_new_version_and_follows_the_new_clock() {
    let vm = vm();
    vm.pv.wrmsr(1, msr::KVM_SYSTEM_TIME_NEW, 0x1001).unwrap().unwrap();
    let before = vm.u32(0x1000);
    *vm.now.lock().unwrap() =
        ClockSample { guest_ns: 9_000, tsc: 1_000, khz: 1_000_000, realtime_ns: 0 };
    vm.pv.refresh(true);
    assert_eq!(vm.u32(0x1000), before + 2);
    assert_eq!(vm.read_clock(0x1000, 1_500), 9_500);
    let flags = vm.bytes::<1>(0x1000 + 29)[0];
    assert_eq!(flags, TimeInfo::TSC_STABLE | TimeInfo::GUEST_STOPPED);
    vm.pv.set_tsc_offset(1, 100);
    assert_eq!(vm.read_clock(0x1000, 1_600), 9_500);
    assert_eq!(vm.bytes::<1>(0x1000 + 29)[0], 0);
}

#[test]
fn the_wall_clock_is_the_time_of_boot() {
    let vm = vm();
    vm.pv.wrmsr(0, msr::KVM_WALL_CLOCK_NEW, 0x2000).unwrap().unwrap();
    assert_eq!(vm.u32(0x2000), 2);
    assert_eq!((vm.u32(0x2004), vm.u32(0x2008)), (1_699_999_995, 123_456_789));
}

#[test]
fn steal_time_adds_what_the_thread_waited() {
    let vm = vm();
    assert!(vm.pv.wrmsr(0, msr::KVM_STEAL_TIME, 0x3003).unwrap().is_err(), "not aligned");
    vm.pv.wrmsr(0, msr::KVM_STEAL_TIME, 0x3001).unwrap().unwrap();
    vm.pv.update_steal(0, 1_000_000); // waited before it looked
    vm.pv.update_steal(0, 1_250_000);
    vm.pv.update_steal(0, 1_250_000);
    assert_eq!(vm.u64(0x3000), 250_000);
    assert_eq!(vm.u32(0x3008) % 2, 0);
}

#[test]
fn addresses_that_are_not_memory_harm_nobody() {
    let vm = vm();
    for address in [0, 0x4ff0, 0x5000, !0 << 6, 1 << 63, 0xffe] {
        for index in [msr::KVM_SYSTEM_TIME_NEW, msr::KVM_WALL_CLOCK_NEW, msr::KVM_STEAL_TIME] {
            let _ = vm.pv.wrmsr(0, index, address | 1).unwrap();
        }
        vm.pv.refresh(false);
        vm.pv.update_steal(0, 1);
        vm.pv.update_steal(0, 2);
    }
}

#[test]
fn what_is_not_offered_faults_and_what_is_not_ours_is_left() {
    let vm = vm();
    let clock = Arc::new(ClockSample::default);
    let none = PvKvm::new(vm.memory.clone(), clock, Features(0), 1);
    assert!(none.wrmsr(0, msr::KVM_SYSTEM_TIME_NEW, 0x1001).unwrap().is_err());
    assert!(none.rdmsr(0, msr::KVM_WALL_CLOCK).unwrap().is_err());
    assert!(vm.pv.wrmsr(0, msr::KVM_ASYNC_PF_EN, 0).unwrap().is_err());
    assert!(vm.pv.wrmsr(0, msr::IA32_TSC, 0).is_none());
    assert!(vm.pv.rdmsr(9, msr::KVM_SYSTEM_TIME).is_none());
    assert!(vm.pv.wrmsr(0, msr::KVM_POLL_CONTROL, 2).unwrap().is_err());
}

#[test]
fn saved_msrs_go_on_elsewhere() {
    let (a, b) = (vm(), vm());
    let set = [
        (msr::KVM_SYSTEM_TIME_NEW, 0x1041),
        (msr::KVM_WALL_CLOCK_NEW, 0x2000),
        (msr::KVM_STEAL_TIME, 0x3001),
        (msr::KVM_POLL_CONTROL, 0),
    ];
    for (index, value) in set {
        a.pv.wrmsr(1, index, value).unwrap().unwrap();
    }
    let mut msrs = Msrs::default();
    a.pv.save(1, &mut msrs);
    msrs.set(msr::LSTAR, 7);
    let saved = msrs.clone();
    b.pv.restore(1, &mut msrs).unwrap();
    assert_eq!(msrs.0.len(), 1, "ours are taken out");
    for (index, value) in set {
        assert_eq!(b.pv.rdmsr(1, index).unwrap().unwrap(), value);
    }
    b.pv.refresh(false);
    assert_eq!(b.read_clock(0x1040, 77_000_000_000), 5_000_000_000);
    let mut unknown = saved;
    unknown.set(msr::KVM_ASYNC_PF_EN, 1);
    assert_eq!(b.pv.restore(1, &mut unknown), Err(UnknownMsr(msr::KVM_ASYNC_PF_EN)));
    b.pv.reset();
    let mut empty = Msrs::default();
    b.pv.save(1, &mut empty);
    assert_eq!(empty, Msrs::default());
}

#[test]
fn the_signature_is_kvms() {
    let leaves = leaves(Features::all().within(0x0100_000b));
    let [b, c, d] = [leaves[0].ebx, leaves[0].ecx, leaves[0].edx].map(u32::to_le_bytes);
    assert_eq!([b, c, d].concat(), b"KVMKVMKVM\0\0\0");
    assert_eq!((leaves[1].leaf, leaves[1].eax), (0x4000_0001, 0x0100_000b));
}
