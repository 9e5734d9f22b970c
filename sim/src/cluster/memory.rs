//! Memory in bytes: what of the heap a world uses, and how much it may.
//!
//! Owns the allocator of every program that links this crate: mimalloc, which counts here. (The system's
//! took an eighth of a world's time.) What lies on simulated disks is not counted, for it would not be
//! memory. The one idea: a count is looked at and never written to the trace, so that a world is the
//! same however its memory is laid out.
//!
//! The heap is the process's: it says something of a world as long as that world is alone in it, as
//! `run` and `swarm` have it.

use cap::Cap;
use mimalloc::MiMalloc;

use super::check::{Broken, Promise};

#[global_allocator]
static HEAP: Cap<MiMalloc> = Cap::new(MiMalloc, usize::MAX);

/// In use for each machine, in bytes, on average of the nodes that run and the clients; packets on their
/// way, dead processes that are not gone yet and the world's own books included. Twice the most that was
/// seen in 71 worlds, 8.3 MB.
const MACHINE_BYTES_MAX: u64 = 16 << 20;

/// What a node may have more when all is calm again than when it had just met the others, in bytes: its
/// index, its ledger, what it knows of a hundred chunks and larger buffers stay. Twice the most that was seen
/// in 71 worlds, 2.4 MB; when all have just met it is 1.5 to 2.5 MB.
const MORE_BYTES_MAX: u64 = 5 << 20;

/// What a world uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Of the heap, by the world alone.
    pub(super) heap_bytes: u64,
    /// Of these, what is on simulated disks.
    pub(super) disk_bytes: u64,
    /// Nodes that run, and clients.
    pub(super) machines: u64,
}

impl Usage {
    /// For each machine.
    pub(super) fn machine_bytes(self) -> u64 {
        self.heap_bytes.saturating_sub(self.disk_bytes) / self.machines.max(1)
    }

    /// Whether this may be at any moment.
    pub(super) fn is_bounded(self) -> Result<(), Broken> {
        at_most("bytes of memory for each machine", self.machine_bytes(), MACHINE_BYTES_MAX)
    }

    /// Whether this may be left when all is calm again.
    pub(super) fn is_let_go(self, quiet: Self) -> Result<(), Broken> {
        let most = quiet.machine_bytes() + MORE_BYTES_MAX;
        at_most("bytes of memory left for each node", self.machine_bytes(), most)
    }
}

fn at_most(what: &str, got: u64, most: u64) -> Result<(), Broken> {
    if got <= most {
        return Ok(());
    }
    Err(Broken::new(Promise::Bounds, format!("{what}: {got} of {most} at most")))
}

/// The heap of this process in use, in bytes.
pub(super) fn heap_bytes() -> u64 {
    HEAP.allocated() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Usage = Usage { heap_bytes: 30 << 20, disk_bytes: 10 << 20, machines: 10 };

    #[test]
    fn what_is_on_disks_is_no_memory() {
        assert_eq!(QUIET.machine_bytes(), 2 << 20);
        let full = Usage { heap_bytes: 100 << 30, disk_bytes: 100 << 30, ..QUIET };
        assert_eq!(full.is_bounded(), Ok(()));
    }

    #[test]
    fn more_than_the_bound_is_a_broken_promise() {
        let most = QUIET.disk_bytes + QUIET.machines * MACHINE_BYTES_MAX;
        let with = |heap_bytes| Usage { heap_bytes, ..QUIET };
        assert_eq!(with(most).is_bounded(), Ok(()));
        let broken = with(most + QUIET.machines).is_bounded().expect_err("one byte too many each");
        assert_eq!(broken.promise, Promise::Bounds);
        assert!(broken.how.starts_with("bytes of memory for each machine: "), "{broken}");
    }

    #[test]
    fn what_is_not_let_go_is_a_broken_promise() {
        let with =
            |more: u64| Usage { heap_bytes: QUIET.heap_bytes + QUIET.machines * more, ..QUIET };
        assert_eq!(with(MORE_BYTES_MAX).is_let_go(QUIET), Ok(()));
        let broken = with(MORE_BYTES_MAX + 1).is_let_go(QUIET).expect_err("one byte too many each");
        assert_eq!(broken.promise, Promise::Bounds);
    }

    #[test]
    fn the_heap_is_counted() {
        let before = heap_bytes();
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        // Other tests run beside this one, but none with as much.
        assert!(heap_bytes() >= before + (32 << 20), "{}", held.len());
    }
}
