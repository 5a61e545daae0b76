//! What a vCPU counts, by name: for people who ask why a guest is slow.
//!
//! Engines count in plain integers of their own, where they leave the guest's code anyhow, and
//! name them only when they are asked. Names and groups are for display and promise nothing.

use std::borrow::Cow;

/// A number with its unit, and how those of several vCPUs make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    Count(u64),
    Bytes(u64),
    /// Nanoseconds altogether.
    Time(u64),
    /// The most nanoseconds at once.
    Longest(u64),
    /// The first over the second.
    Ratio(u64, u64),
}

impl Value {
    /// That of both; of two units the first stays.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Count(a), Self::Count(b)) => Self::Count(a.saturating_add(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Self::Bytes(a.saturating_add(b)),
            (Self::Time(a), Self::Time(b)) => Self::Time(a.saturating_add(b)),
            (Self::Longest(a), Self::Longest(b)) => Self::Longest(a.max(b)),
            (Self::Ratio(a, of), Self::Ratio(b, more)) => {
                Self::Ratio(a.saturating_add(b), of.saturating_add(more))
            }
            _ => self,
        }
    }

    /// Nothing was counted.
    pub fn is_zero(&self) -> bool {
        match *self {
            Self::Count(n) | Self::Bytes(n) | Self::Time(n) | Self::Longest(n) => n == 0,
            Self::Ratio(n, of) => n == 0 || of == 0,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    pub name: Cow<'static, str>,
    pub value: Value,
}

/// Counters that are shown together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: &'static str,
    /// In the order of display.
    pub counters: Vec<Counter>,
    /// Of many counters that differ from guest to guest, the largest come first, and small
    /// ones are not shown.
    pub ranked: bool,
}

impl Group {
    /// Counts under a name; twice the same name is their sum.
    pub fn add(&mut self, name: impl Into<Cow<'static, str>>, value: Value) -> &mut Self {
        let name = name.into();
        match self.counters.iter_mut().find(|c| c.name == name) {
            Some(known) => known.value = known.value.and(value),
            None => self.counters.push(Counter { name, value }),
        }
        self
    }

    pub fn count(&mut self, name: &'static str, count: u64) -> &mut Self {
        self.add(name, Value::Count(count))
    }

    pub fn bytes(&mut self, name: &'static str, bytes: u64) -> &mut Self {
        self.add(name, Value::Bytes(bytes))
    }

    /// Nanoseconds altogether.
    pub fn time(&mut self, name: &'static str, ns: u64) -> &mut Self {
        self.add(name, Value::Time(ns))
    }

    /// The most nanoseconds at once.
    pub fn longest(&mut self, name: &'static str, ns: u64) -> &mut Self {
        self.add(name, Value::Longest(ns))
    }

    pub fn ratio(&mut self, name: &'static str, count: u64, of: u64) -> &mut Self {
        self.add(name, Value::Ratio(count, of))
    }

    pub fn get(&self, name: &str) -> Option<Value> {
        self.counters.iter().find(|c| c.name == name).map(|c| c.value)
    }
}

/// All that one vCPU counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub groups: Vec<Group>,
}

impl Stats {
    /// The group of this name, which is new at first.
    pub fn group(&mut self, name: &'static str) -> &mut Group {
        let known = self.groups.iter().position(|g| g.name == name);
        let at = known.unwrap_or(self.groups.len());
        if known.is_none() {
            self.groups.push(Group { name, counters: Vec::new(), ranked: false });
        }
        &mut self.groups[at]
    }

    /// Like [`Self::group`], for counters of which only the largest matter.
    pub fn ranking(&mut self, name: &'static str) -> &mut Group {
        let group = self.group(name);
        group.ranked = true;
        group
    }

    /// A counter's value, by the names of its group and its own.
    pub fn get(&self, group: &str, name: &str) -> Option<Value> {
        self.groups.iter().find(|g| g.name == group)?.get(name)
    }

    /// Adds another vCPU's.
    pub fn merge(&mut self, other: &Self) {
        for theirs in &other.groups {
            let own = self.group(theirs.name);
            own.ranked |= theirs.ranked;
            for counter in &theirs.counters {
                own.add(counter.name.clone(), counter.value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_are_added_by_name_and_unit() {
        let mut one = Stats::default();
        one.group("work").count("things", 3).time("time", 10).longest("pause", 7).ratio("r", 1, 2);
        one.ranking("kinds").count("mov", 1);
        let mut two = Stats::default();
        two.group("work").longest("pause", 5).count("things", 4).time("time", 1).ratio("r", 2, 2);
        two.group("more").bytes("size", 8);
        one.merge(&two);
        assert_eq!(one.get("work", "things"), Some(Value::Count(7)));
        assert_eq!(one.get("work", "time"), Some(Value::Time(11)));
        assert_eq!(one.get("work", "pause"), Some(Value::Longest(7)));
        assert_eq!(one.get("work", "r"), Some(Value::Ratio(3, 4)));
        assert_eq!(one.get("more", "size"), Some(Value::Bytes(8)));
        assert_eq!(one.get("kinds", "mov"), Some(Value::Count(1)));
        assert!(one.group("kinds").ranked && !one.group("more").ranked);
        assert_eq!(one.get("work", "mov"), None);
    }
}
