//! A network without a thread, for tests that give it any frames: each round is asked for.

use std::{sync::Arc, time::Duration};

use nic::Port;

use crate::{Config, Error, context::Context, forward, host::Poller, stack::Stack};

pub struct Network {
    stack: Stack,
    cx: Context,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}

impl Network {
    /// # Errors
    /// If a forward cannot listen, or the host has no sockets.
    pub fn new(config: Config, dns_port: u16) -> Result<Self, Error> {
        let forwards =
            forward::open(&config).map_err(|(at, source)| Error::Listen { at, source })?;
        let cx = Context::new(Arc::new(config), Poller::new()?);
        let stack = Stack::new(forwards, Some(dns_port), &cx)?;
        Ok(Self { stack, cx })
    }

    /// What sockets are ready for, what the guest has sent, what is due. Whether there is more.
    pub fn round(&mut self, port: Arc<dyn Port>) -> bool {
        let events = self.cx.poller.wait(Some(Duration::ZERO));
        self.stack.round(Some(port), true, &events, &mut self.cx)
    }

    /// As when the machine is reset, or moves to another.
    pub fn renew(&mut self, moves: bool) {
        if moves {
            let memory = self.stack.save();
            self.stack.restore(memory, &mut self.cx);
        } else {
            self.stack.reset(&mut self.cx);
        }
    }
}
