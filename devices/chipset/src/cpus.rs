//! The registers by which a guest's operating system hears of CPUs that come and go, as QEMU
//! publishes them (`docs/specs/acpi_cpu_hotplug.rst`); the ACPI tables have the code that uses them.
//!
//! ```text
//!   operator: one more    -> present, INSERTING, event -> system: Notify, clears it, _OST
//!   operator: one less    -> REMOVING, event           -> system: Notify, clears it,
//!                                                         stops using it, EJECT -> absent
//! ```
//!
//! What a CPU does is the machine's matter: it is told before a CPU is there, and hears of one that
//! was ejected ([`Cpus::on_eject`]). The first CPU stays, whatever the guest writes. A reset of the
//! machine leaves those that were there from the start.

use crate::{bytes::lock, gpe, gpe::Gpe};
use device::{Device, PioDevice, Wiring};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError},
    time::Duration,
};

/// Where OVMF looks for the registers of a `q35`.
pub const PORTS: u16 = 0xcd8;
pub const LENGTH: u16 = 12;

/// Offsets. The second number is read-only, and always 0.
const SELECTOR: u16 = 0;
const FLAGS: u16 = 4;
const COMMAND: u16 = 5;
const DATA: u16 = 8;

mod flag {
    pub const PRESENT: u8 = 1 << 0;
    pub const INSERTING: u8 = 1 << 1;
    pub const REMOVING: u8 = 1 << 2;
    pub const EJECT: u8 = 1 << 3;
}

mod command {
    pub const FIND: u8 = 0;
    pub const OST_EVENT: u8 = 1;
    pub const OST_STATUS: u8 = 2;
    pub const APIC_ID: u8 = 3;
}

/// `_OST` (ACPI 6.5, tables 6.66 to 6.69): all went well; ejecting goes on.
const SUCCESS: u32 = 0;
const EJECTING: u32 = 0x84;

/// What the operator waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Wanted {
    #[default]
    Nothing,
    /// That the guest says that it has seen it.
    Taken,
    /// That the guest lets go of it.
    Gone,
}

/// One CPU that can be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    pub present: bool,
    /// Events that the guest has not seen.
    pub inserting: bool,
    pub removing: bool,
    pub wanted: Wanted,
    /// With which status of `_OST` the guest said no to what was last wanted.
    pub refused: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpusState {
    pub selector: u32,
    pub command: u8,
    pub ost_event: u32,
    pub cpus: Vec<Cpu>,
}

impl Schema for CpusState {
    const KIND: &'static str = "cpu-hotplug";
    const VERSION: u16 = 1;
}

#[derive(Debug)]
struct Regs {
    state: CpusState,
    /// Those that were ejected since the machine last asked.
    ejected: Vec<u32>,
}

type Hook = Box<dyn Fn() + Send + Sync>;

pub struct Cpus {
    /// How many are there from the start.
    start: u32,
    regs: Mutex<Regs>,
    answered: Condvar,
    gpe: Arc<Gpe>,
    hook: OnceLock<Hook>,
}

impl fmt::Debug for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpus").field("regs", &self.regs).finish_non_exhaustive()
    }
}

fn fresh(start: u32, most: u32) -> CpusState {
    let cpu = |id| Cpu { present: id < start.max(1), ..Cpu::default() };
    CpusState { selector: 0, command: 0, ost_event: 0, cpus: (0..most).map(cpu).collect() }
}

impl Cpus {
    pub(crate) fn build(start: u32, most: u32, gpe: Arc<Gpe>, wiring: &mut Wiring) -> Arc<Self> {
        let regs = Mutex::new(Regs { state: fresh(start, most), ejected: Vec::new() });
        let (answered, hook) = (Condvar::new(), OnceLock::new());
        let cpus = Arc::new(Self { start, regs, answered, gpe, hook });
        wiring.claim_ports("cpu_hotplug", PORTS..=PORTS + LENGTH - 1, cpus.clone());
        wiring.devices.push(cpus.clone());
        cpus
    }

    /// What hears that the guest ejected some, on a vCPU's thread: see [`Self::take_ejected`]. Set
    /// once.
    pub fn on_eject(&self, hook: impl Fn() + Send + Sync + 'static) {
        let _ = self.hook.set(Box::new(hook));
    }

    /// Those that the guest ejected since the last call.
    pub fn take_ejected(&self) -> Vec<u32> {
        std::mem::take(&mut lock(&self.regs).ejected)
    }

    pub fn is_present(&self, id: u32) -> bool {
        lock(&self.regs).state.cpus.get(id as usize).is_some_and(|cpu| cpu.present)
    }

    /// All that can be there.
    pub fn cpus(&self) -> Vec<Cpu> {
        lock(&self.regs).state.cpus.clone()
    }

    /// Lets so many be there, from 1 to as many as there can be. Those that come are the first that
    /// are absent; `prepare` is called for each of them before the guest can know of it. Those that
    /// the guest is asked to let go of are the last ones.
    pub fn set_count<E>(
        &self,
        count: u32,
        mut prepare: impl FnMut(u32) -> Result<(), E>,
    ) -> Result<(), E> {
        let coming = self.recall(count);
        let came = coming.into_iter().try_for_each(|id| {
            prepare(id)?;
            if let Some(cpu) = lock(&self.regs).state.cpus.get_mut(id as usize) {
                let wanted = Wanted::Taken;
                *cpu = Cpu { present: true, inserting: true, wanted, ..Cpu::default() };
            }
            Ok(())
        });
        let mut regs = lock(&self.regs);
        let staying = |cpu: &&mut Cpu| cpu.present && cpu.wanted != Wanted::Gone;
        let all = regs.state.cpus.iter_mut().skip(1).filter(staying);
        let surplus = (all.count() + 1).saturating_sub(count.max(1) as usize);
        for cpu in regs.state.cpus.iter_mut().skip(1).filter(staying).rev().take(surplus) {
            // The guest need not hear of one that it has not seen come, but it may have looked.
            (cpu.removing, cpu.wanted, cpu.refused) = (true, Wanted::Gone, None);
        }
        drop(regs);
        // Of those that did come the guest has to hear, whatever became of the others.
        self.gpe.raise(gpe::CPUS);
        came
    }

    /// Keeps those that the guest has not yet been asked for, as far as so many are to be there;
    /// which absent ones are to come.
    fn recall(&self, count: u32) -> Vec<u32> {
        let mut regs = lock(&self.regs);
        let stays = |cpu: &Cpu| cpu.present && cpu.wanted != Wanted::Gone;
        let staying = regs.state.cpus.iter().filter(|cpu| stays(cpu)).count();
        let mut missing = (count as usize).saturating_sub(staying);
        for cpu in &mut regs.state.cpus {
            // One that the guest refused to give up is among those that stay, even if its event is
            // still to be seen.
            if missing > 0 && cpu.removing && cpu.wanted == Wanted::Gone {
                cpu.removing = false;
                cpu.wanted = if cpu.inserting { Wanted::Taken } else { Wanted::Nothing };
                missing -= 1;
            }
        }
        let absent = (0..).zip(&regs.state.cpus).filter(|(_, cpu)| !cpu.present);
        absent.map(|(id, _)| id).take(missing).collect()
    }

    /// Waits so long for the guest's answers; whether it has given all.
    pub fn wait(&self, patience: Duration) -> bool {
        let open =
            |regs: &mut Regs| regs.state.cpus.iter().any(|cpu| cpu.wanted != Wanted::Nothing);
        let waited = self.answered.wait_timeout_while(lock(&self.regs), patience, open);
        let mut regs = waited.unwrap_or_else(PoisonError::into_inner).0;
        !open(&mut regs)
    }

    /// A byte is written; true if a CPU was ejected.
    fn write_byte(regs: &mut Regs, offset: u16, value: u8) -> bool {
        let state = &mut regs.state;
        let first = state.selector == 0;
        let Some(cpu) = state.cpus.get_mut(state.selector as usize) else { return false };
        match offset {
            FLAGS => {
                cpu.inserting &= value & flag::INSERTING == 0;
                cpu.removing &= value & flag::REMOVING == 0;
                if value & flag::EJECT != 0 && cpu.present && !first {
                    *cpu = Cpu::default();
                    if !regs.ejected.contains(&state.selector) {
                        regs.ejected.push(state.selector);
                    }
                    return true;
                }
            }
            COMMAND => {
                state.command = value;
                if value == command::FIND {
                    state.find();
                }
            }
            _ => {}
        }
        false
    }
}

impl CpusState {
    /// Selects the next one with an event, from the selected one on; if there is none it stays.
    fn find(&mut self) {
        let from = self.selector as usize;
        let ring = (0..).zip(&self.cpus).cycle().skip(from).take(self.cpus.len());
        let mut with_event = ring.filter(|(_, cpu)| cpu.inserting || cpu.removing);
        if let Some((id, _)) = with_event.next() {
            self.selector = id;
        }
    }

    /// Of the selected CPU; zeroes if there is none.
    fn read(&self) -> [u8; LENGTH as usize] {
        let mut bytes = [0; LENGTH as usize];
        let Some(cpu) = self.cpus.get(self.selector as usize) else { return bytes };
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        bytes[usize::from(FLAGS)] = bit(cpu.present, flag::PRESENT)
            | bit(cpu.inserting, flag::INSERTING)
            | bit(cpu.removing, flag::REMOVING);
        // A CPU's number is its APIC ID, too.
        let data = match self.command {
            command::FIND | command::APIC_ID => self.selector,
            _ => 0,
        };
        bytes[usize::from(DATA)..].copy_from_slice(&data.to_le_bytes());
        bytes
    }

    fn write_data(&mut self, value: u32) {
        let Some(cpu) = self.cpus.get_mut(self.selector as usize) else { return };
        match self.command {
            command::OST_EVENT => self.ost_event = value,
            command::OST_STATUS => {
                // Which event it is of is told by what was last asked.
                let done = match (cpu.wanted, value) {
                    (_, EJECTING) | (Wanted::Gone, SUCCESS) | (Wanted::Nothing, _) => false,
                    (_, SUCCESS) => true,
                    _ => {
                        cpu.refused = Some(value);
                        true
                    }
                };
                if done {
                    cpu.wanted = Wanted::Nothing;
                }
            }
            _ => {}
        }
    }
}

impl PioDevice for Cpus {
    fn read(&self, port: u16, data: &mut [u8]) {
        let bytes = lock(&self.regs).state.read();
        for (at, byte) in (usize::from(port.wrapping_sub(PORTS))..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        let mut number = [0; 4];
        number.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let number = u32::from_le_bytes(number);
        let mut regs = lock(&self.regs);
        let mut ejected = false;
        match port.wrapping_sub(PORTS) {
            SELECTOR => regs.state.selector = number,
            DATA => regs.state.write_data(number),
            first @ FLAGS..=COMMAND => {
                for (offset, byte) in (first..).zip(data) {
                    ejected |= Self::write_byte(&mut regs, offset, *byte);
                }
            }
            _ => {}
        }
        drop(regs);
        self.answered.notify_all();
        if ejected && let Some(hook) = self.hook.get() {
            hook();
        }
    }
}

impl Device for Cpus {
    fn name(&self) -> String {
        "cpu_hotplug".into()
    }

    fn reset(&self) {
        let mut regs = lock(&self.regs);
        let most = regs.state.cpus.len() as u32;
        *regs = Regs { state: fresh(self.start, most), ejected: Vec::new() };
        drop(regs);
        self.answered.notify_all();
    }

    fn save(&self, to: &mut Writer) {
        to.put(0, &lock(&self.regs).state);
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let state: CpusState = from.take(0)?;
        let mut regs = lock(&self.regs);
        if state.cpus.len() != regs.state.cpus.len() {
            return Err(malformed::<CpusState>("another number of CPUs can be there"));
        }
        if !state.cpus.first().is_some_and(|cpu| cpu.present) {
            return Err(malformed::<CpusState>("the first CPU is not there"));
        }
        let idle = Cpu::default();
        if state.cpus.iter().any(|cpu| !cpu.present && Cpu { refused: None, ..*cpu } != idle) {
            return Err(malformed::<CpusState>("a CPU that is not there has an event"));
        }
        *regs = Regs { state, ejected: Vec::new() };
        Ok(())
    }
}

#[cfg(test)]
#[path = "cpus/tests.rs"]
mod tests;
