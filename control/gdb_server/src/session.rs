//! One debugger from its first byte to its last.

use crate::{
    inbox::{Event, Inbox, StopSender},
    stream::Stream,
    target::Target,
};
use gdbstub::conn::Connection;
use gdbstub::stub::{
    DisconnectReason, GdbStubBuilder, GdbStubError, MultiThreadStopReason,
    state_machine::GdbStubStateMachine,
};
use machine::{Gone, Handle};
use std::{
    io,
    net::{Shutdown, TcpStream},
};

type StubError = GdbStubError<Gone, io::Error>;
type Stub = GdbStubStateMachine<'static, Target, Stream>;

/// Serves the debugger behind `stream` until it goes. Failures end the session and no more.
pub(crate) fn serve(stream: &TcpStream, handle: &Handle) {
    let (Ok(of_reader), Ok(of_writer)) = (stream.try_clone(), stream.try_clone()) else { return };
    let Ok((inbox, to_inbox, reader)) = Inbox::start(of_reader) else { return };
    // Consumes the inbox, without which the reader does not wait for anybody.
    attach(inbox, StopSender(to_inbox), Stream::new(of_writer), handle);
    // The peer may have closed it.
    drop(stream.shutdown(Shutdown::Both));
    drop(reader.join());
}

fn attach(mut inbox: Inbox, stops: StopSender, to: Stream, handle: &Handle) {
    // Whoever only probes the port leaves the machine alone.
    if !inbox.opened() {
        return;
    }
    let attached = handle.debugger(move |stop| stops.tell(stop)).and_then(|()| handle.pause());
    if attached.is_ok() {
        let mut target = Target::new(handle.clone(), inbox);
        let reason = converse(to, &mut target);
        finish(&mut target, reason.ok());
    }
}

/// Leaves the machine as the debugger's going asks; if it is gone, so is the machine's need.
fn finish(target: &mut Target, reason: Option<DisconnectReason>) {
    let _ = target.handle.no_debugger();
    match reason {
        Some(DisconnectReason::Kill) => {
            let _ = target.handle.quit();
        }
        // The debugger detached, its connection broke, or it does not speak the protocol.
        _ => {
            let _ = target.handle.pause();
            target.clear_debug();
            let _ = target.handle.resume();
        }
    }
}

fn converse(stream: Stream, target: &mut Target) -> Result<DisconnectReason, Option<StubError>> {
    let stub = GdbStubBuilder::new(stream).build().map_err(|_| None)?;
    let mut stub: Stub = stub.run_state_machine(target)?;
    loop {
        stub = match stub {
            GdbStubStateMachine::Idle(idle) => match target.inbox.next() {
                Event::Byte(byte) => idle.incoming_data(target, byte)?,
                Event::Stop(stop) => {
                    target.missed(stop);
                    idle.into()
                }
                Event::Closed | Event::Ended => return Err(None),
            },
            GdbStubStateMachine::Running(running) => {
                if let Some(reason) = target.take_missed() {
                    running.report_stop(target, reason)?
                } else {
                    match target.inbox.next() {
                        Event::Byte(byte) => running.incoming_data(target, byte)?,
                        Event::Stop(stop) => {
                            let reason = target.reason(stop);
                            running.report_stop(target, reason)?
                        }
                        Event::Ended => {
                            running.report_stop(target, MultiThreadStopReason::Exited(0))?
                        }
                        Event::Closed => return Err(None),
                    }
                }
            }
            GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                // The stop that follows is told like any other.
                target.handle.pause().map_err(|Gone| None)?;
                interrupt.interrupt_handled(target, None::<MultiThreadStopReason<u64>>)?
            }
            GdbStubStateMachine::Disconnected(mut done) => {
                let reason = done.get_reason();
                if reason == DisconnectReason::Kill {
                    // The library leaves vKill without its answer, and k has none to lose.
                    let to = done.borrow_conn();
                    // Who does not wait for it has gone.
                    drop(to.write_all(b"$OK#9a").and_then(|()| to.flush()));
                }
                return Ok(reason);
            }
        }
    }
}
