//! The registers of the adapter and of its ports (AHCI, chapter 3).

use crate::{
    Core, PORTS,
    drive::Drive,
    state::{AhciState, PortState},
};

/// Registers of the adapter.
mod global {
    pub const CAP: u32 = 0x00;
    pub const GHC: u32 = 0x04;
    pub const IS: u32 = 0x08;
    pub const PI: u32 = 0x0c;
    pub const VS: u32 = 0x10;
}

/// Six ports, 32 commands each, AHCI only, the first generation's speed, native command queuing, 64-bit
/// addresses.
const CAPABILITIES: u32 =
    (PORTS as u32 - 1) | 31 << 8 | 1 << 18 | 1 << 20 | 1 << 24 | 1 << 30 | 1 << 31;
const VERSION: u32 = 0x0001_0301;

/// Bits of GHC.
mod ghc {
    pub const RESET: u32 = 1;
    pub const INTERRUPTS: u32 = 2;
    pub const AHCI: u32 = 1 << 31;
}

const PORT_BASE: u32 = 0x100;
const PORT_SIZE: u32 = 0x80;

/// Registers of a port.
mod port {
    pub const CLB: u32 = 0x00;
    pub const CLBU: u32 = 0x04;
    pub const FB: u32 = 0x08;
    pub const FBU: u32 = 0x0c;
    pub const IS: u32 = 0x10;
    pub const IE: u32 = 0x14;
    pub const CMD: u32 = 0x18;
    pub const TFD: u32 = 0x20;
    pub const SIG: u32 = 0x24;
    pub const SSTS: u32 = 0x28;
    pub const SCTL: u32 = 0x2c;
    pub const SERR: u32 = 0x30;
    pub const SACT: u32 = 0x34;
    pub const CI: u32 = 0x38;
}

/// Bits of PxIS and PxIE.
pub(crate) mod interrupt {
    pub const REGISTER_FIS: u32 = 1;
    pub const PIO_SETUP: u32 = 1 << 1;
    pub const SET_DEVICE_BITS: u32 = 1 << 3;
    pub const CONNECT: u32 = 1 << 6;
    pub const TASK_FILE_ERROR: u32 = 1 << 30;
    pub const ENABLES: u32 = 0xfdc0_00ff;
}

/// Bits of PxCMD.
mod cmd {
    pub const START: u32 = 1;
    pub const SPIN_UP: u32 = 1 << 1;
    pub const POWER: u32 = 1 << 2;
    /// Clears the busy bits of the task file.
    pub const OVERRIDE: u32 = 1 << 3;
    pub const RECEIVE: u32 = 1 << 4;
    pub const RECEIVING: u32 = 1 << 14;
    pub const RUNNING: u32 = 1 << 15;
    pub const ATAPI: u32 = 1 << 24;
    pub const WRITABLE: u32 = START | SPIN_UP | POWER | RECEIVE | ATAPI;
}

/// The first slot has its turn next.
const LAST: u8 = 31;
/// PxSERR: a device was found.
const EXCHANGED: u32 = 1 << 26;
/// PxSSTS: a device is there, at the first generation's speed, awake.
const PRESENT: u32 = 0x113;
/// PxSCTL.DET: the port is reset while it is 1.
const RESETTING: u32 = 1;
/// PxTFD of a port at which nothing answers.
const NOBODY: u32 = 0x7f;
/// PxTFD of a drive that is ready, without an error; and while it executes.
const BUSY: u32 = 0x80;
const DATA_REQUEST: u32 = 0x08;

/// What drives answer with after a reset (ACS, 6.1): PxSIG and PxTFD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) sig: u32,
    pub(crate) tfd: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) regs: PortState,
    drive: Option<Signature>,
    /// The command that a worker executes.
    pub(crate) executing: Option<u8>,
    /// It is a queued one, which the drive has accepted: the port is not busy with it.
    pub(crate) accepted: bool,
    /// Counts what makes a command under way void.
    pub(crate) generation: u64,
}

impl Port {
    fn new(drive: Option<Signature>) -> Self {
        let regs = PortState::default();
        let mut port = Self { regs, drive, executing: None, accepted: false, generation: 0 };
        port.reset();
        port
    }

    /// As after power-on: the drive has been found already.
    fn reset(&mut self) {
        self.generation += 1;
        let cmd = cmd::SPIN_UP | cmd::POWER;
        self.regs = PortState { cmd, last: LAST, ..PortState::default() };
        self.answer();
    }

    /// The drive's first answer after a reset.
    pub(crate) fn answer(&mut self) {
        (self.regs.sig, self.regs.tfd) = match self.drive {
            Some(signature) => (signature.sig, signature.tfd),
            None => (u32::MAX, NOBODY),
        };
    }

    fn status(&self) -> u32 {
        let resetting = self.regs.sctl & 0xf == RESETTING;
        if self.drive.is_some() && !resetting { PRESENT } else { 0 }
    }

    /// The command to execute next: slots have their turn, so that none waits for ever.
    pub(crate) fn next(&self) -> Option<u8> {
        let started = self.regs.cmd & cmd::START != 0 && !self.regs.failed;
        let first = (self.regs.last + 1) % 32;
        let ahead = self.regs.ci.rotate_right(first.into()).trailing_zeros() as u8;
        let wanted = self.executing.is_none() && self.regs.ci != 0;
        (started && wanted).then(|| (first + ahead) % 32)
    }

    /// A command that is not queued is under way, or the next.
    fn is_busy(&self) -> bool {
        match self.executing {
            Some(_) => !self.accepted,
            None => self.next().is_some_and(|slot| self.regs.sact >> slot & 1 == 0),
        }
    }

    /// The drive has taken a queued command, and is ready for more (Serial ATA, 13.6.4).
    pub(crate) fn accept(&mut self, slot: u8) {
        self.accepted = true;
        self.regs.ci &= !(1 << slot);
    }

    /// It may write to where received structures go.
    pub(crate) fn receives(&self) -> bool {
        self.regs.cmd & cmd::RECEIVE != 0
    }

    fn read(&self, register: u32) -> u32 {
        let regs = &self.regs;
        match register {
            port::CLB => regs.clb as u32,
            port::CLBU => (regs.clb >> 32) as u32,
            port::FB => regs.fb as u32,
            port::FBU => (regs.fb >> 32) as u32,
            port::IS => regs.is,
            port::IE => regs.ie,
            port::CMD => self.read_cmd(),
            port::TFD if self.is_busy() => regs.tfd | BUSY,
            port::TFD => regs.tfd,
            port::SIG => regs.sig,
            port::SSTS => self.status(),
            port::SCTL => regs.sctl,
            port::SERR => regs.serr,
            port::SACT => regs.sact,
            port::CI => regs.ci,
            _ => 0,
        }
    }

    fn read_cmd(&self) -> u32 {
        let mut value = self.regs.cmd;
        if value & cmd::RECEIVE != 0 {
            value |= cmd::RECEIVING;
        }
        // It runs until the command under way has ended.
        if value & cmd::START != 0 || self.executing.is_some() {
            value |= cmd::RUNNING;
        }
        value | u32::from(self.executing.unwrap_or(0)) << 8
    }

    fn write(&mut self, register: u32, value: u32, drive: Option<&Drive>) {
        let low = |old: u64, bits: u32| old & !0xffff_ffff | u64::from(value & bits);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match register {
            port::CLB => self.regs.clb = low(self.regs.clb, !0x3ff),
            port::CLBU => self.regs.clb = high(self.regs.clb),
            port::FB => self.regs.fb = low(self.regs.fb, !0xff),
            port::FBU => self.regs.fb = high(self.regs.fb),
            port::IS => self.regs.is &= !value,
            port::IE => self.regs.ie = value & interrupt::ENABLES,
            port::CMD => self.write_cmd(value),
            port::SCTL => self.write_sctl(value, drive),
            port::SERR => {
                self.regs.serr &= !value;
                if self.regs.serr & EXCHANGED == 0 {
                    self.regs.is &= !interrupt::CONNECT;
                }
            }
            port::SACT if self.regs.cmd & cmd::START != 0 => self.regs.sact |= value,
            port::CI if self.regs.cmd & cmd::START != 0 => self.regs.ci |= value,
            _ => {}
        }
    }

    fn write_cmd(&mut self, value: u32) {
        let before = self.regs.cmd;
        self.regs.cmd = value & cmd::WRITABLE;
        if value & cmd::OVERRIDE != 0 {
            self.regs.tfd &= !(BUSY | DATA_REQUEST);
        }
        if before & !value & cmd::START != 0 {
            self.generation += 1;
            (self.regs.ci, self.regs.sact, self.regs.failed) = (0, 0, false);
            self.regs.last = LAST;
        }
    }

    /// The port's reset, which lasts until software ends it (AHCI, 10.4.2).
    fn write_sctl(&mut self, value: u32, drive: Option<&Drive>) {
        let before = self.regs.sctl & 0xf;
        self.regs.sctl = value & 0xfff;
        match (before, value & 0xf) {
            (_, RESETTING) => {
                self.generation += 1;
                (self.regs.ci, self.regs.tfd) = (0, NOBODY);
            }
            (RESETTING, 0) => {
                self.regs.queue_error = None;
                if let Some(drive) = drive {
                    drive.reset();
                    self.regs.serr |= EXCHANGED;
                    self.regs.is |= interrupt::CONNECT;
                }
                self.answer();
            }
            _ => {}
        }
    }
}

#[derive(Debug)]
pub(crate) struct Hba {
    control: u32,
    /// Ports whose interrupt was seen; cleared by software only.
    pending: u32,
    pub(crate) ports: Vec<Port>,
    pub(crate) paused: bool,
    pub(crate) stop: bool,
    /// Software has seen interrupts, and there are others of which it has to hear (10.6.2).
    pub(crate) repeat: bool,
}

impl Hba {
    pub(crate) fn new(drives: Vec<Signature>) -> Self {
        let drive = |port| Port::new(drives.get(port).copied());
        let ports = (0..PORTS).map(drive).collect();
        // A device is built paused.
        Self { control: ghc::AHCI, pending: 0, ports, paused: true, stop: false, repeat: false }
    }

    pub(crate) fn reset(&mut self) {
        (self.control, self.pending) = (ghc::AHCI, 0);
        self.ports.iter_mut().for_each(Port::reset);
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.ports.iter().any(|port| port.executing.is_some())
    }

    /// Brings the adapter's interrupts up to date with the ports'; the pin's level.
    pub(crate) fn interrupt(&self) -> bool {
        self.control & ghc::INTERRUPTS != 0 && self.pending() != 0
    }

    fn pending(&self) -> u32 {
        let asserted = self.ports.iter().map(|port| port.regs.is & port.regs.ie != 0);
        asserted.enumerate().fold(self.pending, |sum, (port, on)| sum | u32::from(on) << port)
    }

    /// The port has raised interrupts.
    pub(crate) fn raise(&mut self, port: usize, bits: u32) {
        if let Some(port) = self.ports.get_mut(port) {
            port.regs.is |= bits;
        }
        self.pending = self.pending();
    }

    pub(crate) fn read(&self, register: u32) -> u32 {
        if let Some((port, register)) = self.place(register) {
            return self.ports.get(port).map_or(0, |port| port.read(register));
        }
        match register {
            global::CAP => CAPABILITIES,
            // A reset ends with the command under way.
            global::GHC if self.is_busy() && self.control & ghc::RESET != 0 => self.control,
            global::GHC => self.control & !ghc::RESET,
            global::IS => self.pending(),
            global::PI => (1 << PORTS) - 1,
            global::VS => VERSION,
            _ => 0,
        }
    }

    /// The port, and which of its registers.
    fn place(&self, register: u32) -> Option<(usize, u32)> {
        let offset = register.checked_sub(PORT_BASE)?;
        Some(((offset / PORT_SIZE) as usize, offset % PORT_SIZE))
    }

    pub(crate) fn write(&mut self, register: u32, value: u32, core: &Core) {
        if let Some((index, register)) = self.place(register) {
            if let Some(port) = self.ports.get_mut(index) {
                port.write(register, value, core.drives.get(index));
            }
            self.pending = self.pending();
            return;
        }
        match register {
            global::GHC if value & ghc::RESET != 0 => {
                self.reset();
                core.drives.iter().for_each(Drive::reset);
                self.control |= ghc::RESET;
            }
            global::GHC => self.control = value & ghc::INTERRUPTS | ghc::AHCI,
            global::IS => {
                self.pending &= !value;
                self.pending = self.pending();
                self.repeat = self.interrupt();
            }
            _ => {}
        }
    }

    pub(crate) fn save(&self) -> ((u32, u32), Vec<PortState>) {
        let ports = self.ports.iter().map(|port| port.regs).collect();
        ((self.control & !ghc::RESET, self.pending), ports)
    }

    /// Checked already.
    pub(crate) fn restore(&mut self, state: &AhciState) {
        (self.control, self.pending) = (state.control & ghc::INTERRUPTS | ghc::AHCI, state.pending);
        for (port, saved) in self.ports.iter_mut().zip(&state.ports) {
            port.generation += 1;
            port.regs = PortState { cmd: saved.cmd & cmd::WRITABLE, ..*saved };
        }
    }
}
