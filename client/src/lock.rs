//! Locks that a panic of whoever held them does not spoil.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after somebody panicked who held it. So whoever writes under such a lock does it in single
/// steps, and leaves nothing half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
