//! `io/xenbus.h`: how far a front end or a back end is.

/// `enum xenbus_state`: what a node `state` says in decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Or none that has a name.
    Unknown = 0,
    Initialising = 1,
    /// Waits for what the other end chooses.
    InitWait = 2,
    /// Has chosen, and waits for the other end to connect.
    Initialised = 3,
    Connected = 4,
    /// Is about to let go, or asks the other end to.
    Closing = 5,
    Closed = 6,
    Reconfiguring = 7,
    Reconfigured = 8,
}

impl State {
    pub fn parse(text: &str) -> Self {
        match text {
            "1" => Self::Initialising,
            "2" => Self::InitWait,
            "3" => Self::Initialised,
            "4" => Self::Connected,
            "5" => Self::Closing,
            "6" => Self::Closed,
            "7" => Self::Reconfiguring,
            "8" => Self::Reconfigured,
            _ => Self::Unknown,
        }
    }

    /// As the node says it.
    pub fn text(self) -> String {
        (self as u8).to_string()
    }
}
