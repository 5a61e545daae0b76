//! The host bridge: how the guest reaches configuration space and BARs.

use crate::{
    Config, SLOTS,
    config::{Bar, BarKind, ConfigSpace, FunctionConfig, MsixConfig, ROM_BAR, reg, status},
    function::Function,
    gsi,
    hotplug::{PortWrite, Written, cleared},
    lock,
    mapped::MappedBars,
    msix,
    port::Port,
    requester::Requester,
    state::{FunctionState, HostState},
};
use device::{Device, LineRef, MmioDevice, MsiSink, NoLine, PioDevice, Wiring};
use saved_state::{Error, Reader, Writer, malformed};
use std::{
    fmt,
    ops::{Range, RangeInclusive},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

/// CONFIG_ADDRESS: answers to four bytes only (PCI, 3.2.2.3.2).
const ADDRESS_PORT: u16 = 0xcf8;
/// CONFIG_DATA: four byte ports.
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Where BARs for ports can be: nothing of the board is there.
pub(crate) const PORT_WINDOW: RangeInclusive<u16> = 0x1000..=0xffff;
/// Enable, bus, device, function, register.
const ADDRESS_BITS: u32 = 0x80ff_fffc;

/// QEMU's generic PCI Express host bridge, which drivers take as it comes.
pub(crate) const BRIDGE: FunctionConfig = FunctionConfig {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    bars: Vec::new(),
    msix: None,
    capabilities: Vec::new(),
    interrupt_pin: false,
    rom: None,
    legacy_ports: false,
    registers: Vec::new(),
    bridge: false,
};

/// A place on the bus with a function in it.
pub(crate) struct Slot {
    /// On the root bus that of its device; behind a port [`SLOTS`] and the port's index.
    pub(crate) number: u8,
    /// The port that it is behind.
    pub(crate) parent: Option<Arc<Slot>>,
    /// It is a port.
    pub(crate) port: Option<Port>,
    pub(crate) space: Mutex<ConfigSpace>,
    pub(crate) fresh: ConfigSpace,
    msix: Option<MsixConfig>,
    rom: Option<Arc<[u8]>>,
    pub(crate) requester: Arc<Requester>,
    /// Set before the guest can reach it.
    pub(crate) function: OnceLock<Arc<dyn Function>>,
    /// Taken before all others, so that a function hears of its registers' values in their order.
    order: Mutex<()>,
}

/// An address range that is decoded.
struct Mapping {
    range: Range<u64>,
    slot: Arc<Slot>,
    bar: Bar,
}

pub struct PciHost {
    config: Config,
    address: Mutex<u32>,
    pub(crate) slots: RwLock<Vec<Arc<Slot>>>,
    /// Memory, in the order of slots: of two that overlap the first answers.
    map: RwLock<Vec<Mapping>>,
    /// Ports, in the same order.
    ports: RwLock<Vec<Mapping>>,
    ram: Mutex<MappedBars>,
    msi: Arc<dyn MsiSink>,
    /// Who hears of what left a port.
    pub(crate) ejected: OnceLock<Ejected>,
}

/// Called with the port's index, on a vCPU's thread.
pub(crate) type Ejected = Box<dyn Fn(usize) + Send + Sync>;

impl fmt::Debug for PciHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciHost").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The ECAM and the windows as devices of the board's buses.
struct Ecam(Arc<PciHost>);
struct Window(Arc<PciHost>);
struct PortWindow(Arc<PciHost>);

impl PciHost {
    pub(crate) fn build(
        config: &Config,
        bridge: &FunctionConfig,
        function: Arc<dyn Function>,
        wiring: &mut Wiring,
    ) -> Arc<Self> {
        let host = Arc::new(Self {
            config: config.clone(),
            address: Mutex::new(0),
            slots: RwLock::default(),
            map: RwLock::default(),
            ports: RwLock::default(),
            ram: Mutex::new(MappedBars::new(config.window.clone(), wiring.slots.clone())),
            msi: wiring.msi.clone(),
            ejected: OnceLock::new(),
        });
        let bridge = host.slot_of(0, bridge, Arc::new(NoLine), None, None);
        host.insert(bridge.clone());
        // Just inserted, so it has none yet.
        let _ = bridge.function.set(function);
        bridge.tell();
        wiring.claim_ports("pci", ADDRESS_PORT..=ADDRESS_PORT, host.clone());
        wiring.claim_ports("pci", DATA_PORT..=DATA_PORT + 3, host.clone());
        wiring.claim_ports("pci_ports", PORT_WINDOW, Arc::new(PortWindow(host.clone())));
        let last = |range: &Range<u64>| range.start..=range.end.saturating_sub(1);
        wiring.claim_mmio("pci_ecam", last(&config.ecam), Arc::new(Ecam(host.clone())));
        wiring.claim_mmio("pci_window", last(&config.window), Arc::new(Window(host.clone())));
        wiring.devices.push(host.clone());
        host
    }

    /// Puts a function on the bus, in the first free slot. `make` is given its requester.
    ///
    /// # Panics
    /// If there is no slot left, or the description does not fit into configuration space:
    /// what the board has is the programmer's, and how many the caller's to check.
    pub fn add<F: Function + 'static>(
        &self,
        config: &FunctionConfig,
        wiring: &Wiring,
        make: impl FnOnce(Arc<Requester>) -> Arc<F>,
    ) -> Arc<F> {
        self.add_at(self.free_number(), config, wiring, make)
    }

    /// # Panics
    /// If there is none.
    pub(crate) fn free_number(&self) -> u8 {
        let taken = self.slots();
        let free = (1..SLOTS).find(|n| taken.iter().all(|slot| slot.number != *n));
        let Some(number) = free else { panic!("no PCI slot is free") };
        number
    }

    /// The same, in this slot, where software expects it.
    ///
    /// # Panics
    /// If the slot is taken or does not exist.
    pub fn add_at<F: Function + 'static>(
        &self,
        number: u8,
        config: &FunctionConfig,
        wiring: &Wiring,
        make: impl FnOnce(Arc<Requester>) -> Arc<F>,
    ) -> Arc<F> {
        let taken = self.slots().iter().any(|slot| slot.number == number);
        assert!(number < SLOTS && !taken, "PCI slot {number} is not free");
        let line = wiring.irq(gsi(number) as usize);
        let slot = self.slot_of(number, config, line, None, None);
        let function = make(slot.requester.clone());
        // Just made, so it has none yet.
        let _ = slot.function.set(function.clone());
        self.insert(slot.clone());
        slot.tell();
        function
    }

    /// How many functions can still be added.
    pub fn free_slots(&self) -> usize {
        let taken = self.slots().iter().filter(|slot| slot.parent.is_none()).count();
        usize::from(SLOTS).saturating_sub(taken)
    }

    /// A place, which nobody reaches yet.
    pub(crate) fn slot_of(
        &self,
        number: u8,
        config: &FunctionConfig,
        line: LineRef,
        parent: Option<Arc<Slot>>,
        port: Option<Port>,
    ) -> Arc<Slot> {
        let space = ConfigSpace::new(config);
        let vectors = config.msix.map_or(0, |msix| msix.vectors);
        Arc::new(Slot {
            number,
            parent,
            port,
            fresh: space.clone(),
            space: Mutex::new(space),
            msix: config.msix,
            rom: config.rom.clone(),
            requester: Requester::new(number, vectors, line, self.msi.clone()),
            function: OnceLock::new(),
            order: Mutex::new(()),
        })
    }

    pub(crate) fn insert(&self, slot: Arc<Slot>) {
        self.slots.write().unwrap_or_else(PoisonError::into_inner).push(slot);
    }

    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn window(&self) -> Range<u64> {
        self.config.window.clone()
    }

    /// The function with this number on the bus: device in bits 7 to 3, function in the rest.
    fn slot(&self, bus: u8, device_function: u8) -> Option<Arc<Slot>> {
        if device_function & 7 != 0 {
            return None;
        }
        let device = device_function >> 3;
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let here = |slot: &&Arc<Slot>| match &slot.parent {
            None => bus == 0 && slot.number == device,
            Some(port) => device == 0 && bus != 0 && port.leads_to() == Some(bus),
        };
        slots.iter().find(here).cloned()
    }

    /// Which addresses lead where, anew. The maps are locked all the while, so that the last of
    /// two changes is the one that stays.
    pub(crate) fn remap(&self) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        map.clear();
        ports.clear();
        for slot in self.slots() {
            let Some(passed) = slot.parent.as_ref().map_or(Some(0..u64::MAX), |p| p.passes())
            else {
                continue;
            };
            let space = lock(&slot.space);
            for bar in space.bars() {
                let Some(range) = space.bar_range(bar).filter(|_| space.is_on(bar)) else {
                    continue;
                };
                let inside = passed.start <= range.start && range.end <= passed.end;
                let to = match bar.kind {
                    // Ports hand on memory only.
                    BarKind::Io if slot.parent.is_none() => &mut ports,
                    BarKind::Memory32 | BarKind::Memory64 if inside => &mut map,
                    _ => continue,
                };
                to.push(Mapping { range, slot: slot.clone(), bar: *bar });
            }
        }
        drop(ports);
        let memory = map.iter().filter_map(|mapping| {
            let function = mapping.slot.function.get()?;
            let memory = function.memory(mapping.bar.index)?;
            Some((mapping.slot.number, mapping.bar.index, mapping.range.clone(), memory))
        });
        lock(&self.ram).show(memory.collect());
    }

    /// What decodes this address, with the offset into it.
    fn decode(&self, address: u64) -> Option<(Arc<Slot>, Bar, u64)> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let hit = map.iter().find(|mapping| mapping.range.contains(&address))?;
        Some((hit.slot.clone(), hit.bar, address - hit.range.start))
    }

    /// What decodes these ports, with the offset of the first into it.
    fn decode_ports(&self, port: u16, len: usize) -> Option<(Arc<Slot>, Bar, u64)> {
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        let (first, end) = (u64::from(port), u64::from(port) + len as u64);
        let hit = ports.iter().find(|mapping| mapping.range.contains(&first))?;
        (end <= hit.range.end).then(|| (hit.slot.clone(), hit.bar, first - hit.range.start))
    }

    fn read_config(&self, bus: u8, device_function: u8, at: usize, data: &mut [u8]) {
        if let Some(slot) = self.slot(bus, device_function) {
            slot.read_config(at, data);
        }
    }

    fn write_config(&self, bus: u8, device_function: u8, at: usize, data: &[u8]) {
        let Some(slot) = self.slot(bus, device_function) else { return };
        let changed = slot.write_config(at, data);
        let after = self.port_written(&slot, &changed);
        if changed.map || after {
            self.remap();
        }
    }

    /// Bus, device and function, and register, of an access to the data ports; `None` while
    /// they are switched off, and for an access across the register's end.
    fn selected(&self, port: u16, len: usize) -> Option<(u8, u8, usize)> {
        let address = *lock(&self.address);
        let byte = usize::from(port.checked_sub(DATA_PORT)?);
        if address & ENABLE == 0 || byte + len > 4 {
            return None;
        }
        let [register, device_function, bus, _] = address.to_le_bytes();
        Some((bus, device_function, usize::from(register & 0xfc) + byte))
    }
}

impl Slot {
    fn read_config(&self, at: usize, data: &mut [u8]) {
        let space = lock(&self.space);
        for (i, byte) in (at..).zip(data.iter_mut()) {
            *byte = space.byte(i);
            if i == reg::STATUS && self.requester.pin() {
                *byte |= status::INTERRUPT as u8;
            }
            if let Some(port) = &self.port
                && let Some(value) = space.express().and_then(|at| port.byte(i.checked_sub(at)?))
            {
                *byte = value;
            }
        }
        let Some(capability) = space.window(at, data.len()).map(<[u8]>::to_vec) else { return };
        let start = space.window_start();
        drop(space);
        let mut window = [0xff; 4];
        if let Some(function) = self.function.get() {
            function.read_window(&capability, &mut window);
        }
        for (i, byte) in (at..).zip(data) {
            if let Some(value) = i.checked_sub(start).and_then(|i| window.get(i)) {
                *byte = *value;
            }
        }
    }

    /// Tells the function what its registers are, if it has any of its own.
    pub(crate) fn tell(&self) {
        let _order = lock(&self.order);
        self.tell_in_order();
    }

    fn tell_in_order(&self) {
        let space = lock(&self.space);
        let config = space.has_own().then(|| *space.bytes());
        drop(space);
        if let (Some(config), Some(function)) = (config, self.function.get()) {
            function.configured(&config);
        }
    }

    fn write_config(&self, at: usize, data: &[u8]) -> Written {
        let _order = lock(&self.order);
        let mut space = lock(&self.space);
        let before = self.port_registers(&space);
        let changed = space.write(at, data);
        let port = self.port.is_some().then(|| PortWrite {
            before,
            after: self.port_registers(&space),
            cleared: cleared(&space, at, data),
        });
        let was_master = self.requester.is_master();
        if changed.requester {
            self.requester.configure(&space);
        }
        let capability = space.window(at, data.len()).map(<[u8]>::to_vec);
        let start = space.window_start();
        drop(space);
        if let Some(function) = self.function.get() {
            match (was_master, self.requester.is_master()) {
                (false, true) => function.became_master(),
                (true, false) => function.lost_master(),
                _ => {}
            }
        }
        if changed.own {
            self.tell_in_order();
        }
        // Only what begins where the window does has a width that means something.
        if let (Some(capability), Some(function)) = (capability, self.function.get())
            && at == start
        {
            function.write_window(&capability, data);
        }
        Written { map: changed.map, port }
    }

    /// The offset into the message table or into the pending bits.
    fn table_offset(&self, bar: usize, offset: u64) -> Option<(bool, u64)> {
        let msix = self.msix.filter(|msix| msix.bar == bar)?;
        let vectors = u64::from(msix.vectors);
        let within = |start: u32, len: u64| offset.checked_sub(start.into()).filter(|o| *o < len);
        let table = within(msix.table, vectors * msix::ENTRY).map(|o| (true, o));
        table.or_else(|| within(msix.pba, vectors.div_ceil(64) * 8).map(|o| (false, o)))
    }

    fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        if bar == ROM_BAR {
            let rom = self.rom.as_deref().unwrap_or_default();
            let rest = usize::try_from(offset).ok().and_then(|offset| rom.get(offset..));
            rest.unwrap_or_default().iter().zip(data).for_each(|(from, to)| *to = *from);
            return;
        }
        match (self.table_offset(bar, offset), self.function.get()) {
            (Some((true, offset)), _) => self.requester.read_table(offset, data),
            (Some((false, offset)), _) => self.requester.read_pending(offset, data),
            (None, Some(function)) => function.read(bar, offset, data),
            (None, None) => {}
        }
    }

    fn write(&self, bar: usize, offset: u64, data: &[u8]) {
        if bar == ROM_BAR {
            return;
        }
        match (self.table_offset(bar, offset), self.function.get()) {
            (Some((true, offset)), _) => self.requester.write_table(offset, data),
            (Some((false, _)), _) | (None, None) => {}
            (None, Some(function)) => function.write(bar, offset, data),
        }
    }

    /// What is saved fits this function.
    fn check(&self, state: &FunctionState) -> Result<(), Error> {
        let refuse = |reason: &str| Err(malformed::<FunctionState>(reason));
        if !self.fresh.clone().restore(&state.config) {
            return refuse("the configuration space is another function's");
        }
        if state.vectors.len() != usize::from(self.msix.map_or(0, |msix| msix.vectors)) {
            return refuse("the function has another number of vectors");
        }
        Ok(())
    }
}

impl PioDevice for PciHost {
    fn read(&self, port: u16, data: &mut [u8]) {
        if port == ADDRESS_PORT {
            if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
                *data = lock(&self.address).to_le_bytes();
            }
        } else if let Some((bus, device_function, at)) = self.selected(port, data.len()) {
            self.read_config(bus, device_function, at, data);
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        if port == ADDRESS_PORT {
            if let Ok(data) = <[u8; 4]>::try_from(data) {
                *lock(&self.address) = u32::from_le_bytes(data) & ADDRESS_BITS;
            }
        } else if let Some((bus, device_function, at)) = self.selected(port, data.len()) {
            self.write_config(bus, device_function, at, data);
        }
    }
}

/// Bus, device and function, and register, of an offset into the ECAM (PCIe, 7.2.2).
fn ecam(offset: u64) -> (u8, u8, usize) {
    ((offset >> 20) as u8, (offset >> 12) as u8, (offset & 0xfff) as usize)
}

impl MmioDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (bus, device_function, at) = ecam(offset);
        self.0.read_config(bus, device_function, at, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (bus, device_function, at) = ecam(offset);
        self.0.write_config(bus, device_function, at, data);
    }
}

impl MmioDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = self.0.config.window.start + offset;
        if let Some((slot, bar, offset)) = self.0.decode(address) {
            slot.read(bar.index, offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = self.0.config.window.start + offset;
        if let Some((slot, bar, offset)) = self.0.decode(address) {
            slot.write(bar.index, offset, data);
        }
    }
}

impl PioDevice for PortWindow {
    fn read(&self, port: u16, data: &mut [u8]) {
        if let Some((slot, bar, offset)) = self.0.decode_ports(port, data.len()) {
            slot.read(bar.index, offset, data);
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        if let Some((slot, bar, offset)) = self.0.decode_ports(port, data.len()) {
            slot.write(bar.index, offset, data);
        }
    }
}

impl Device for PciHost {
    fn name(&self) -> String {
        "pci".into()
    }

    fn reset(&self) {
        *lock(&self.address) = 0;
        for slot in self.slots() {
            slot.requester.reset();
            *lock(&slot.space) = slot.fresh.clone();
            slot.tell();
            if let Some(port) = &slot.port {
                port.reset();
            }
        }
        self.remap();
    }

    fn save(&self, to: &mut Writer) {
        to.put(0, &HostState { address: *lock(&self.address) });
        for slot in self.slots() {
            let config = lock(&slot.space).bytes().to_vec();
            let (vectors, pin) = slot.requester.save();
            to.put(slot.number.into(), &FunctionState { config, vectors, pin });
            if let Some(port) = &slot.port {
                to.put(slot.number.into(), &port.state());
            }
        }
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let host: HostState = from.take(0)?;
        if host.address & !ADDRESS_BITS != 0 {
            return Err(malformed::<HostState>("the address register has bits that are not there"));
        }
        let mut restored = Vec::new();
        for slot in self.slots() {
            let state: FunctionState = from.take(slot.number.into())?;
            slot.check(&state)?;
            let port = self.check_port(&slot, from)?;
            restored.push((slot, state, port));
        }
        *lock(&self.address) = host.address;
        for (slot, state, port) in restored {
            let mut space = lock(&slot.space);
            // Checked above.
            space.restore(&state.config);
            slot.requester.restore(&state, &space);
            if let (Some(port), Some(saved)) = (&slot.port, port) {
                port.restore(saved, slot.port_registers(&space).control);
            }
            drop(space);
            slot.tell();
        }
        self.remap();
        Ok(())
    }
}
