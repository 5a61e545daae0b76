//! The signal that ends KVM_RUN.
#![expect(unsafe_code, reason = "signals have no safe wrapper in std")]

use std::{mem::MaybeUninit, ptr, sync::Once};

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int) {}

/// The handler has nothing to do: that the signal arrives ends KVM_RUN. Without SA_RESTART,
/// though KVM_RUN is never restarted anyway.
pub(crate) fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler = ignore as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: an all-zero `sigaction` is a valid one: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = handler;
        // SAFETY: `ignore` is a handler for the process's whole life and touches nothing.
        unsafe { libc::sigaction(kick_signal(), &action, ptr::null_mut()) };
    });
}

/// This thread can be kicked, whatever its creator blocked.
pub(crate) fn unblock() {
    // SAFETY: `set` is initialised by `sigemptyset` before it is read.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, kick_signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
    }
}

pub(crate) fn current_thread() -> i32 {
    // SAFETY: has no preconditions.
    unsafe { libc::gettid() }
}

/// Async-signal-safe.
pub(crate) fn send(thread: i32) {
    // SAFETY: at worst the thread is gone, or a later one of this process gets a signal whose
    // handler does nothing.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, kick_signal()) };
}
