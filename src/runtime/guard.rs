//! Panics of code that is not ours become errors.
//!
//! The library installs no panic hook, so the default one would print each panic before it is caught. A program that
//! has a hook of its own can ask [`panics_become_errors`] and keep quiet.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

thread_local! {
    /// How many guarded steps this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread is in a step whose panics are caught and returned as errors, so that there is nothing to print.
/// For panic hooks.
pub fn panics_become_errors() -> bool {
    // A hook may run while the thread's locals are being torn down.
    DEPTH.try_with(|d| d.get() > 0).unwrap_or(false)
}

/// Runs a step; the error is the words of its panic.
pub(super) fn catch<T>(step: impl FnOnce() -> T) -> Result<T, String> {
    DEPTH.set(DEPTH.get() + 1);
    let done = catch_unwind(AssertUnwindSafe(step));
    DEPTH.set(DEPTH.get() - 1);
    done.map_err(|panic| words(&*panic))
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_can_know() {
        assert!(!panics_become_errors());
        let inner = catch(|| {
            assert_eq!(catch(|| 3), Ok(3));
            panics_become_errors()
        });
        assert_eq!(inner, Ok(true));
        assert!(!panics_become_errors());
    }
}
