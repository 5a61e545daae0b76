//! Functions that come and go while the guest runs, behind root ports.

use crate::{
    SLOTS,
    config::{BUS_RESET, ConfigSpace, FunctionConfig, reg},
    function::{Function, Nothing},
    gsi,
    host::{PciHost, Slot},
    lock,
    port::{self, After, Port, PortState},
    requester::Requester,
};
use device::Wiring;
use saved_state::{Error, Reader, malformed};
use std::sync::{Arc, PoisonError};

/// Why nothing was put into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlugError {
    /// There is no port of this number.
    NoPort,
    Occupied,
}

/// The registers of a port that mean more than bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortRegisters {
    pub(crate) control: u16,
    bridge_control: u8,
}

/// A write to a port's space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortWrite {
    pub(crate) before: PortRegisters,
    pub(crate) after: PortRegisters,
    /// Bits of slot status to which ones were written.
    pub(crate) cleared: u16,
}

/// What a write to a function's space changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) map: bool,
    pub(crate) port: Option<PortWrite>,
}

/// Which bits of slot status a write clears.
pub(crate) fn cleared(space: &ConfigSpace, at: usize, data: &[u8]) -> u16 {
    let Some(express) = space.express() else { return 0 };
    let status = express + port::SLOT_STATUS;
    let byte = |index: usize| {
        let offset = (status + index).checked_sub(at)?;
        data.get(offset).copied()
    };
    u16::from_le_bytes([byte(0).unwrap_or(0), byte(1).unwrap_or(0)])
}

impl Slot {
    pub(crate) fn port_registers(&self, space: &ConfigSpace) -> PortRegisters {
        if self.port.is_none() {
            return PortRegisters::default();
        }
        let express = space.express().unwrap_or_default();
        PortRegisters {
            control: space.word(express + port::SLOT_CONTROL),
            bridge_control: space.byte(reg::BRIDGE_CONTROL),
        }
    }

    /// The bus behind a port, if what is there answers.
    pub(crate) fn leads_to(&self) -> Option<u8> {
        let link = self.port.as_ref()?.state().link;
        link.then(|| lock(&self.space).secondary_bus())
    }

    /// The memory behind a port.
    pub(crate) fn passes(&self) -> Option<std::ops::Range<u64>> {
        let link = self.port.as_ref()?.state().link;
        lock(&self.space).bridge_window().filter(|_| link)
    }

    /// Interrupts for what has changed.
    fn signal(&self) {
        let Some(port) = &self.port else { return };
        let control = self.port_registers(&lock(&self.space)).control;
        let (level, rises) = port.level(control);
        self.requester.set_pin(level);
        if rises {
            self.requester.notify(0);
        }
    }
}

impl PciHost {
    /// Puts a root port on the bus, into which functions can be plugged. Ports are counted from 0.
    ///
    /// # Panics
    /// If there is no slot left.
    pub fn add_port(&self, wiring: &Wiring) {
        let number = self.free_number();
        let index = self.ports().len();
        let gsi = gsi(number) as usize;
        // Pin INTA# of device 0 behind a bridge leads where the bridge's own does.
        let port = Port::new(index, wiring.irq(gsi));
        let config = port::function(number);
        let slot = self.slot_of(number, &config, wiring.irq(gsi), None, Some(port));
        // Just made, so it has none yet.
        let _ = slot.function.set(Arc::new(Nothing));
        self.insert(slot);
    }

    /// Whoever is told when the guest has let go of what is behind a port, by its number: what was
    /// there is no longer reached, and does nothing more. Called on a vCPU's thread.
    pub fn on_eject(&self, told: impl Fn(usize) + Send + Sync + 'static) {
        // The first one stays: there is one machine.
        let _ = self.ejected.set(Box::new(told));
    }

    /// Which ports there are, and whether something is behind them.
    pub fn ports(&self) -> Vec<bool> {
        let slots = self.slots();
        slots.iter().filter_map(|slot| Some(slot.port.as_ref()?.state().occupied)).collect()
    }

    fn port(&self, index: usize) -> Option<Arc<Slot>> {
        let is = |slot: &Arc<Slot>| slot.port.as_ref().is_some_and(|port| port.index == index);
        self.slots().into_iter().find(is)
    }

    /// Puts a function behind a port; the guest is told. `make` is given its requester.
    ///
    /// # Errors
    /// If there is no such port, or something is there.
    pub fn plug<F: Function + 'static>(
        &self,
        index: usize,
        config: &FunctionConfig,
        make: impl FnOnce(Arc<Requester>) -> Arc<F>,
    ) -> Result<Arc<F>, PlugError> {
        let slot = self.port(index).ok_or(PlugError::NoPort)?;
        let Some(port) = &slot.port else { return Err(PlugError::NoPort) };
        if port.state().occupied || self.child(&slot).is_some() {
            return Err(PlugError::Occupied);
        }
        let number = SLOTS + index as u8;
        let parent = Some(slot.clone());
        let child = self.slot_of(number, config, port.line.clone(), parent, None);
        let function = make(child.requester.clone());
        // Just made, so it has none yet.
        let _ = child.function.set(function.clone());
        self.insert(child);
        port.occupy(slot.port_registers(&lock(&slot.space)).control);
        self.remap();
        slot.signal();
        Ok(function)
    }

    /// Presses the attention button of a port: the guest is asked to let go of what is there.
    /// False if nothing is.
    pub fn ask_unplug(&self, index: usize) -> bool {
        let Some(slot) = self.port(index) else { return false };
        let asked = slot.port.as_ref().is_some_and(Port::press);
        slot.signal();
        asked
    }

    /// Takes away what is behind a port without asking anybody: the guest finds it gone.
    pub fn pull(&self, index: usize) {
        let Some(slot) = self.port(index) else { return };
        if let Some(port) = &slot.port
            && port.vacate()
        {
            self.eject(&slot, index);
            slot.signal();
        }
    }

    fn child(&self, parent: &Arc<Slot>) -> Option<Arc<Slot>> {
        let behind =
            |slot: &Arc<Slot>| slot.parent.as_ref().is_some_and(|p| Arc::ptr_eq(p, parent));
        self.slots().into_iter().find(behind)
    }

    /// Carries out a write to a port's space; true if other addresses may lead elsewhere now.
    pub(crate) fn port_written(&self, slot: &Arc<Slot>, written: &Written) -> bool {
        let (Some(port), Some(write)) = (&slot.port, &written.port) else { return false };
        let After { map, eject } =
            port.write(write.before.control, write.after.control, write.cleared);
        let rises = !write.before.bridge_control & write.after.bridge_control & BUS_RESET != 0;
        if rises && let Some(child) = self.child(slot) {
            child.requester.reset();
            *lock(&child.space) = child.fresh.clone();
            if let Some(function) = child.function.get() {
                function.bus_reset();
            }
        }
        if eject {
            self.eject(slot, port.index);
        }
        slot.signal();
        map || rises
    }

    fn eject(&self, parent: &Arc<Slot>, index: usize) {
        if let Some(child) = self.child(parent) {
            let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
            slots.retain(|slot| !Arc::ptr_eq(slot, &child));
            drop(slots);
            child.requester.reset();
        }
        self.remap();
        if let Some(told) = self.ejected.get() {
            told(index);
        }
    }

    /// What is saved of a port fits what is there.
    pub(crate) fn check_port(
        &self,
        slot: &Arc<Slot>,
        from: &mut Reader,
    ) -> Result<Option<PortState>, Error> {
        if slot.port.is_none() {
            return Ok(None);
        }
        let state: PortState = from.take(slot.number.into())?;
        if !state.is_sound() {
            return Err(malformed::<PortState>("a slot is impossible"));
        }
        if state.occupied != self.child(slot).is_some() {
            return Err(malformed::<PortState>("a slot is empty here or there"));
        }
        Ok(Some(state))
    }
}
