//! Seconds since 1970 as a calendar date, and how the clock's registers encode it.

/// A date and time of the proleptic Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    pub(super) month: i64,
    pub(super) day: i64,
    pub(super) hour: i64,
    pub(super) minute: i64,
    pub(super) second: i64,
}

pub(super) const DAY: i64 = 86_400;
/// Years that four digits can tell.
const FIRST: i64 = -62_167_219_200;
const LAST: i64 = 253_402_300_799;

impl Date {
    /// After Hinnant, "chrono-compatible low-level date algorithms": the year begins in March.
    pub(super) fn from_unix(seconds: i64) -> Self {
        let seconds = seconds.clamp(FIRST, LAST);
        let (days, time) = (seconds.div_euclid(DAY) + 719_468, seconds.rem_euclid(DAY));
        let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let shifted = (5 * of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        Self {
            year: year + era * 400 + i64::from(month <= 2),
            month,
            day: of_year - (153 * shifted + 2) / 5 + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }

    /// Fields out of range carry over; a month out of range is moved into it.
    pub(super) fn to_unix(self) -> i64 {
        let month = self.month.clamp(1, 12);
        let year = self.year - i64::from(month <= 2);
        let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let shifted = (month + 9) % 12;
        let of_year = (153 * shifted + 2) / 5 + self.day - 1;
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
        (days * DAY + self.hour * 3600 + self.minute * 60 + self.second).clamp(FIRST, LAST)
    }

    /// 1 is Sunday.
    pub(super) fn weekday(self) -> i64 {
        (self.to_unix().div_euclid(DAY) + 4).rem_euclid(7) + 1
    }
}

/// How registers encode numbers: register B's DM and 24/12 bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub(super) binary: bool,
    pub(super) hours_24: bool,
}

const PM: u8 = 0x80;

impl Format {
    pub(super) fn encode(self, value: i64) -> u8 {
        let value = value.rem_euclid(100) as u8;
        if self.binary { value } else { ((value / 10) << 4) | (value % 10) }
    }

    pub(super) fn decode(self, value: u8) -> i64 {
        let value = i64::from(value);
        if self.binary { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    pub(super) fn encode_hour(self, hour: i64) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    pub(super) fn decode_hour(self, value: u8) -> i64 {
        if self.hours_24 {
            return self.decode(value);
        }
        self.decode(value & !PM) % 12 + if value & PM != 0 { 12 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let date = Date::from_unix(951_782_400);
        assert_eq!((date.year, date.month, date.day, date.weekday()), (2000, 2, 29, 3));
        let date = Date::from_unix(1_700_000_000);
        assert_eq!((date.year, date.month, date.day), (2023, 11, 14));
        assert_eq!((date.hour, date.minute, date.second), (22, 13, 20));
        assert_eq!(Date::from_unix(0).weekday(), 5);
    }

    #[test]
    fn there_and_back() {
        for seconds in (FIRST..=LAST).step_by(987_654_321).chain([FIRST, -1, 0, LAST]) {
            assert_eq!(Date::from_unix(seconds).to_unix(), seconds);
        }
    }

    #[test]
    fn hours_of_twelve() {
        let format = Format { binary: false, hours_24: false };
        for (hour, byte) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (23, 0x91)] {
            assert_eq!(format.encode_hour(hour), byte);
            assert_eq!(format.decode_hour(byte), hour);
        }
    }
}
