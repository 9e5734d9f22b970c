//! The randomness and the time of day of the operating system, replaced on the threads of worlds.
//!
//! Owns the symbols `getrandom` and `clock_gettime` of every program that links this crate: keys of
//! handshakes, the order of hash maps and the dates in HTTP headers come from there. A thread that
//! was given no seed gets the system's own.

use std::{
    cell::Cell,
    ffi::{c_uint, c_void},
    mem, ptr,
    sync::atomic::{AtomicPtr, Ordering::Relaxed},
};

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From here on this thread's randomness is a function of `seed`. To be called before anything else
/// on the thread asks for some: hash maps ask once and count on from there.
pub fn seed(seed: u64) {
    STATE.set(Some(seed));
}

/// The time of day of every world, in unix seconds, for those who ask the system: libraries. Nodes
/// have clocks of their own.
pub(super) const EPOCH: u64 = 1_800_000_000;

/// Stands before the C library's function of this name.
///
/// # Safety
/// As there: `time` points to a writable `timespec`.
#[allow(unsafe_code)] // the libraries beneath us ask the C library, and take no other source
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    time: *mut libc::timespec,
) -> libc::c_int {
    let is_world = STATE.try_with(Cell::get).ok().flatten().is_some();
    if clock == libc::CLOCK_REALTIME && is_world {
        let now = libc::timespec { tv_sec: EPOCH.cast_signed(), tv_nsec: 0 };
        // SAFETY: the caller promises that there is room for one.
        unsafe { time.write(now) };
        return 0;
    }
    let system = system_clock();
    // SAFETY: the same arguments as ours, for the function that ours stands before.
    unsafe { system(clock, time) }
}

type ClockGettime = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> libc::c_int;

/// The C library's own `clock_gettime`, which reads most clocks without a system call. The runtime asks
/// twice whenever it runs tasks: with a call each time that was a twentieth of a world.
#[allow(unsafe_code)] // as for the function that stands before it
fn system_clock() -> ClockGettime {
    static FOUND: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    let mut found = FOUND.load(Relaxed);
    if found.is_null() {
        // SAFETY: the name ends with a zero byte.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"clock_gettime".as_ptr()) };
        if found.is_null() {
            return by_system_call;
        }
        FOUND.store(found, Relaxed);
    }
    // SAFETY: the C library's function of this name has this type.
    unsafe { mem::transmute::<*mut c_void, ClockGettime>(found) }
}

/// Where there is no such function behind ours: linked statically.
#[allow(unsafe_code)] // as for the function that stands before it
unsafe extern "C" fn by_system_call(
    clock: libc::clockid_t,
    time: *mut libc::timespec,
) -> libc::c_int {
    // SAFETY: the same arguments as ours, for the call that the C library would make.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    libc::c_int::try_from(result).unwrap_or(-1)
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Stands before the C library's function of this name.
///
/// # Safety
/// As there: `buffer` points to `length` writable bytes.
#[allow(unsafe_code)] // the libraries beneath us ask the C library, and take no other source
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let Some(mut state) = STATE.try_with(Cell::get).ok().flatten() else {
        // SAFETY: the same arguments as ours, for the call that the C library would make.
        let read = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return isize::try_from(read).unwrap_or(-1);
    };
    // SAFETY: the caller promises as many bytes; they may be uninitialised, so they are only
    // written to.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(buffer.cast::<mem::MaybeUninit<u8>>(), length) };
    for part in bytes.chunks_mut(8) {
        for (byte, random) in part.iter_mut().zip(next(&mut state).to_le_bytes()) {
            byte.write(random);
        }
    }
    STATE.set(Some(state));
    isize::try_from(length).unwrap_or(isize::MAX)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, thread, time::SystemTime};

    #[test]
    fn only_a_thread_with_a_seed_has_a_time_of_its_own() {
        let own = thread::spawn(|| {
            super::seed(1);
            SystemTime::now()
        });
        let own = own.join().expect("it runs");
        assert_eq!(own, SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(super::EPOCH));
        assert_ne!(SystemTime::now(), own);
    }

    #[test]
    fn a_thread_with_a_seed_has_the_same_hash_maps_every_time() {
        let order = |seed| {
            let order = move || {
                super::seed(seed);
                let map: HashMap<u32, u32> = (0..100).map(|n| (n, n)).collect();
                map.into_keys().collect::<Vec<_>>()
            };
            thread::spawn(order).join().expect("it runs")
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }
}
