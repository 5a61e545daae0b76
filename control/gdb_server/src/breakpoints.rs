//! Breakpoints and watchpoints, all of them the engine's.

use crate::target::Target;
use engine::{Breakpoint, BreakpointKind};
use gdbstub::target::{
    TargetResult,
    ext::breakpoints::{
        Breakpoints, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
        SwBreakpointOps, WatchKind,
    },
};

/// More than a person sets; a peer that asks for more is refused.
const MOST: usize = 256;
/// The longest range that one watchpoint covers, in bytes.
const LONGEST: u64 = 1024;

/// What the debugger asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    Software(u64),
    Hardware(u64),
    Watch { address: u64, len: u64, kind: WatchKind },
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Points(Vec<Point>);

impl Points {
    /// What the engine is to watch for, each once.
    pub(crate) fn breakpoints(&self) -> Vec<Breakpoint> {
        let mut out = Vec::new();
        for point in &self.0 {
            match *point {
                Point::Software(address) | Point::Hardware(address) => {
                    let new = Breakpoint { address, kind: BreakpointKind::Execute };
                    if !out.contains(&new) {
                        out.push(new);
                    }
                }
                Point::Watch { address, len, kind } => pieces(address, len, kind, &mut out),
            }
        }
        out
    }

    /// Whether the breakpoint there is one of software, as the debugger sees it.
    pub(crate) fn is_software(&self, address: u64) -> Option<bool> {
        self.0.iter().find_map(|point| match *point {
            Point::Software(at) if at == address => Some(true),
            Point::Hardware(at) if at == address => Some(false),
            _ => None,
        })
    }

    /// The kind of the watchpoint that covers `address`.
    pub(crate) fn watch_at(&self, address: u64) -> Option<WatchKind> {
        self.0.iter().find_map(|point| match *point {
            Point::Watch { address: at, len, kind } if address.wrapping_sub(at) < len => Some(kind),
            _ => None,
        })
    }
}

/// A range as aligned pieces of 1, 2, 4 and 8 bytes.
fn pieces(address: u64, len: u64, kind: WatchKind, out: &mut Vec<Breakpoint>) {
    let (mut at, mut left) = (address, len);
    while left > 0 {
        let size = [8, 4, 2, 1].into_iter().find(|&n| at.is_multiple_of(n) && n <= left);
        let size = size.unwrap_or(1);
        let len = size as u8;
        // The processor knows no watchpoint for reads alone; GDB does without one, too, as long
        // as it hears that memory was touched.
        let kind = match kind {
            WatchKind::Write => BreakpointKind::Write { len },
            WatchKind::Read | WatchKind::ReadWrite => BreakpointKind::Access { len },
        };
        out.push(Breakpoint { address: at, kind });
        at = at.wrapping_add(size);
        left -= size;
    }
}

impl Target {
    /// False if the engine refuses, for it has too few.
    fn add(&mut self, point: Point) -> bool {
        if self.points.0.contains(&point) {
            return true;
        }
        if self.points.0.len() >= MOST {
            return false;
        }
        self.points.0.push(point);
        let accepted = self.watch(&|_| false).is_ok();
        if !accepted {
            self.points.0.pop();
            // What was accepted before is again.
            drop(self.watch(&|_| false));
        }
        accepted
    }

    /// Removing what is not there does no harm; the engine forgets it at the next resume.
    fn remove(&mut self, point: Point) -> bool {
        self.points.0.retain(|p| *p != point);
        true
    }
}

impl Breakpoints for Target {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Target {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add(Point::Software(address)))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(Point::Software(address)))
    }
}

impl HwBreakpoint for Target {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add(Point::Hardware(address)))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(Point::Hardware(address)))
    }
}

impl HwWatchpoint for Target {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok((1..=LONGEST).contains(&len) && self.add(Point::Watch { address, len, kind }))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.remove(Point::Watch { address, len, kind }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_aligned_pieces() {
        let mut out = Vec::new();
        pieces(0x1003, 14, WatchKind::Write, &mut out);
        let got: Vec<_> = out.iter().map(|b| (b.address, b.kind)).collect();
        let write = |len| BreakpointKind::Write { len };
        assert_eq!(
            got,
            [(0x1003, write(1)), (0x1004, write(4)), (0x1008, write(8)), (0x1010, write(1))]
        );
        out.clear();
        pieces(u64::MAX, 2, WatchKind::Read, &mut out);
        let access = BreakpointKind::Access { len: 1 };
        let at = |address| Breakpoint { address, kind: access };
        assert_eq!(out, [at(u64::MAX), at(0)]);
    }

    #[test]
    fn one_address_with_two_kinds_of_breakpoint_costs_one() {
        let points = Points(vec![Point::Software(16), Point::Hardware(16)]);
        assert_eq!(points.breakpoints().len(), 1);
        assert_eq!(points.is_software(16), Some(true));
        assert_eq!(points.is_software(17), None);
    }
}
