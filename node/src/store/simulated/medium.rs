//! A disk in memory with a page cache, which fails as told and can lose power at any of its operations.
//!
//! Owns the files of segments as they are for the process, and what a power cut makes of them: each write
//! that was not synced is there, torn, or gone, and so is each name that was made or removed. Knows no
//! records. The one idea: a process is a *life*; once it ended, what it still does changes nothing.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use copse_core::random::Random;
use rustix::io::Errno;
use tokio::sync::Notify;

use super::{
    super::{
        device::{Device, DeviceFile},
        memory::{Effects, Faults, Step, Unsynced, Watch},
        segment::HEAD_BYTES,
    },
    rows::Log,
};

/// What can be lost of a torn write by itself, in bytes.
const PAGE_BYTES: u64 = 4096;

/// The disk of a machine. It outlives the processes that use it.
pub(super) struct Medium {
    state: Mutex<State>,
    ended: Notify,
    watch: Mutex<Option<Arc<dyn Watch>>>,
    bytes_max: u64,
}

pub(super) struct State {
    /// How often a process ended.
    life: u64,
    names: BTreeMap<u32, File>,
    /// The names that a power cut leaves.
    durable_names: BTreeMap<u32, File>,
    pub(super) log: Log,
    pub(super) faults: Faults,
    pub(super) effects: Effects,
    pub(super) random: Random,
    /// Writes and reads that could have gone to a wrong place.
    aimed: [u64; 2],
    /// The last write that failed left a part of what it should write.
    left_a_part: bool,
}

type File = Arc<Mutex<Content>>;

/// What is in a file, as a process sees it.
#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    /// What was done since the last sync, the oldest first.
    unsynced: Vec<Undo>,
    /// Ranges that cannot be read.
    unreadable: Vec<Range<u64>>,
    /// Where a fault put something else: the bytes that should be there.
    intended: Vec<(u64, Vec<u8>)>,
    is_removed: bool,
}

/// What takes a change back.
#[derive(Clone)]
struct Undo {
    at: u64,
    /// The bytes that were there from `at` on, of those that were changed.
    old: Vec<u8>,
    /// How many were changed.
    changed: u64,
    /// How long the file was.
    length: u64,
}

fn range_of(at: u64, bytes: usize) -> Range<u64> {
    at..at + bytes as u64
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// An offset in a file in memory.
fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn eio() -> io::Error {
    Errno::IO.into()
}

impl Content {
    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Puts bytes somewhere, in the cache.
    fn put(&mut self, at: u64, data: &[u8]) {
        let (range, length) = (range_of(at, data.len()), self.length());
        let old = self.bytes.get(index(range.start)..index(range.end.min(length)));
        let old = old.map(<[u8]>::to_vec).unwrap_or_default();
        self.unsynced.push(Undo { at, old, changed: data.len() as u64, length });
        if range.end > length {
            self.bytes.resize(index(range.end), 0);
        }
        self.bytes[index(range.start)..index(range.end)].copy_from_slice(data);
    }

    /// What was meant to be there is what was written now.
    fn is_meant(&mut self, at: u64, data: &[u8]) {
        let range = range_of(at, data.len());
        for (from, intended) in &mut self.intended {
            for (offset, byte) in (*from..).zip(intended.iter_mut()) {
                if range.contains(&offset) {
                    *byte = data[index(offset - at)];
                }
            }
        }
        // Sectors that are written anew are good ones.
        self.unreadable.retain(|bad| !overlap(bad, &range));
    }

    fn cut(&mut self, at: u64) {
        let length = self.length();
        if at >= length {
            self.bytes.resize(index(at), 0);
            return;
        }
        let old = self.bytes.split_off(index(at));
        self.unsynced.push(Undo { at, old, changed: 0, length });
        self.intended.retain(|(from, intended)| from + intended.len() as u64 <= at);
        self.unreadable.retain(|bad| bad.end <= at);
    }

    fn takes_back(&mut self, undo: &Undo) {
        self.bytes.resize(index(undo.length), 0);
        if undo.old.is_empty() {
            return;
        }
        let from = index(undo.at);
        self.bytes[from..from + undo.old.len()].copy_from_slice(&undo.old);
    }

    /// What a power cut leaves of what was not synced.
    fn loses_power(
        &mut self,
        random: &mut Random,
        effects: &mut Effects,
        fate: &mut dyn FnMut() -> Unsynced,
    ) {
        let mut done = Vec::new();
        for undo in std::mem::take(&mut self.unsynced).into_iter().rev() {
            let end = (undo.at + undo.changed).min(self.length());
            let new = self.bytes.get(index(undo.at)..index(end)).unwrap_or_default().to_vec();
            self.takes_back(&undo);
            done.push((undo, new));
        }
        for (undo, mut new) in done.into_iter().rev() {
            let fate = fate();
            let is_cut = undo.changed == 0;
            match fate {
                Unsynced::Gone => effects.unsynced_lost += u64::from(!is_cut),
                // A cut is one step.
                Unsynced::Whole | Unsynced::Torn if is_cut => {
                    self.bytes.truncate(index(undo.at));
                }
                Unsynced::Whole => self.restore(undo.at, &new),
                Unsynced::Torn => {
                    effects.torn += 1;
                    if random.below(2) == 0 {
                        new.truncate(random.below(new.len().max(1)));
                        self.restore(undo.at, &new);
                    } else {
                        self.restore_some_pages(undo.at, &new, random);
                    }
                }
            }
        }
    }

    fn restore(&mut self, at: u64, new: &[u8]) {
        let end = index(at) + new.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[index(at)..end].copy_from_slice(new);
    }

    /// The file is as long as it was to be, and some of its pages are not what they were to be.
    fn restore_some_pages(&mut self, at: u64, new: &[u8], random: &mut Random) {
        let (end, mut from) = (at + new.len() as u64, at);
        if self.length() < end {
            self.bytes.resize(index(end), 0);
        }
        while from < end {
            let page_end = ((from / PAGE_BYTES + 1) * PAGE_BYTES).min(end);
            if random.below(2) == 0 {
                let page = &new[index(from - at)..index(page_end - at)];
                self.restore(from, page);
            }
            from = page_end;
        }
    }

    /// Whether this range would be read as it was meant, now and after a power cut.
    fn is_sound(&self, range: &Range<u64>) -> bool {
        !self.is_damaged(range)
            && !self
                .unsynced
                .iter()
                .any(|undo| overlap(&range_of(undo.at, index(undo.changed)), range))
    }

    /// Whether this range cannot be read, or gives something else than what was meant.
    fn is_damaged(&self, range: &Range<u64>) -> bool {
        range.end > self.length()
            || self.unreadable.iter().any(|bad| overlap(bad, range))
            || self.intended.iter().any(|(from, intended)| {
                let bytes = (*from..).zip(intended);
                let mut inside = bytes.filter(|(at, _)| range.contains(at));
                inside.any(|(at, byte)| self.bytes.get(index(at)) != Some(byte))
            })
    }

    /// Something that was not meant gets here; what should be here is remembered.
    fn is_struck(&mut self, range: &Range<u64>) {
        let known = range.end.min(self.length());
        let bytes = self.bytes.get(index(range.start)..index(known)).unwrap_or_default().to_vec();
        self.intended.push((range.start, bytes));
    }
}

impl Medium {
    /// An empty disk with room for so many bytes.
    pub(super) fn new(bytes_max: u64, random: Random) -> Arc<Self> {
        let state = State {
            life: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            log: Log::default(),
            faults: Faults::default(),
            effects: Effects::default(),
            random,
            aimed: [0; 2],
            left_a_part: false,
        };
        Self::of(state, bytes_max)
    }

    fn of(state: State, bytes_max: u64) -> Arc<Self> {
        let (state, ended, watch) = (Mutex::new(state), Notify::new(), Mutex::default());
        Arc::new(Self { state, ended, watch, bytes_max })
    }

    /// The same files and the same log on a disk of their own, which does not fail.
    pub(super) fn copy(&self) -> Arc<Self> {
        let state = self.state();
        let names = state.names.iter().map(|(&number, file)| {
            let mut content = lock(file).clone();
            content.unreadable.clear();
            (number, Arc::new(Mutex::new(content)))
        });
        let names: BTreeMap<u32, File> = names.collect();
        let state = State {
            life: 0,
            durable_names: names.clone(),
            names,
            log: state.log.clone(),
            faults: Faults::default(),
            effects: Effects::default(),
            random: state.random.clone(),
            aimed: [0; 2],
            left_a_part: false,
        };
        Self::of(state, u64::MAX)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The process that runs now.
    pub(super) fn life(&self) -> u64 {
        self.state().life
    }

    pub(super) fn watch(&self, watch: Option<Arc<dyn Watch>>) {
        *lock(&self.watch) = watch;
    }

    /// The state, for a process that still lives.
    pub(super) fn of_life(&self, life: u64) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.life == life { Ok(state) } else { Err(io::Error::other("the process is dead")) }
    }

    /// Does an operation of a process, unless it dies right before. If it dies right after, what is left of
    /// it does not know that it was done.
    pub(super) fn step<T>(
        &self,
        step: Step,
        life: u64,
        work: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        self.tell(step, life, false);
        let result = work(&mut *self.of_life(life)?);
        self.tell(step, life, true);
        drop(self.of_life(life)?);
        result
    }

    fn tell(&self, step: Step, life: u64, is_done: bool) {
        let watch = lock(&self.watch).clone();
        if let Some(watch) = watch.filter(|_| self.life() == life) {
            watch.step(step, is_done);
        }
    }

    /// Waits until this process has ended.
    pub(super) async fn has_ended(&self, life: u64) {
        loop {
            let ended = self.ended.notified();
            if self.life() != life {
                return;
            }
            ended.await;
        }
    }

    /// The process ends; with a power cut, what was not synced has the fate that `fate` says, the oldest
    /// first within each file, and so have names.
    pub(super) fn end(&self, power: bool, fate: &mut dyn FnMut() -> Unsynced) {
        let mut state = self.state();
        state.life += 1;
        let state = &mut *state;
        if power {
            let made =
                state.names.keys().filter(|number| !state.durable_names.contains_key(number));
            let removed = state.durable_names.keys().filter(|it| !state.names.contains_key(it));
            for number in made.chain(removed).copied().collect::<Vec<_>>() {
                if fate() == Unsynced::Whole {
                    continue;
                }
                match state.durable_names.get(&number) {
                    Some(file) => {
                        lock(file).is_removed = false;
                        state.names.insert(number, Arc::clone(file));
                    }
                    None => drop(state.names.remove(&number)),
                }
            }
            state.durable_names.clone_from(&state.names);
            for file in state.names.values() {
                lock(file).loses_power(&mut state.random, &mut state.effects, fate);
            }
            state.effects.forgotten_batches +=
                state.log.loses_power(state.faults.forgotten_batches);
        }
        self.ended.notify_waiters();
    }

    /// Whether these bytes of a segment will be read as they were meant, also after a power cut.
    pub(super) fn is_sound(&self, number: u32, range: &Range<u64>) -> bool {
        self.state().names.get(&number).is_some_and(|file| lock(file).is_sound(range))
    }

    /// Whether they cannot be read, or are not what was meant.
    pub(super) fn is_damaged(&self, number: u32, range: &Range<u64>) -> bool {
        self.state().names.get(&number).is_none_or(|file| lock(file).is_damaged(range))
    }

    /// Flips bits of a byte.
    pub(super) fn flip(&self, number: u32, at: u64, mask: u8) -> bool {
        let mut state = self.state();
        let Some(file) = state.names.get(&number) else { return false };
        let mut content = lock(file);
        content.is_struck(&(at..at + 1));
        let Some(byte) = content.bytes.get_mut(index(at)) else { return false };
        *byte ^= mask;
        drop(content);
        state.effects.rotted += 1;
        true
    }

    /// Some bytes cannot be read from now on, until they are written anew.
    pub(super) fn spoil(&self, number: u32, range: Range<u64>) {
        if let Some(file) = self.state().names.get(&number) {
            lock(file).unreadable.push(range);
        }
    }

    /// All bytes can be read again.
    pub(super) fn heal(&self) {
        self.state().names.values().for_each(|file| lock(file).unreadable.clear());
    }

    /// Bytes of all files.
    pub(super) fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }
}

impl State {
    fn used_bytes(&self) -> u64 {
        self.names.values().map(|file| lock(file).length()).sum()
    }

    /// How much of a write of so many bytes is done; or why nothing is.
    fn admit(&mut self, bytes: usize, room: u64) -> io::Result<usize> {
        let Faults { no_space, fail_writes, .. } = self.faults;
        let error = if fail_writes {
            Errno::IO
        } else if no_space || room < bytes as u64 {
            Errno::NOSPC
        } else {
            return Ok(bytes);
        };
        // The first call writes half of it, the next one fails.
        self.left_a_part = !self.left_a_part && bytes > 1 && room >= bytes as u64;
        if self.left_a_part { Ok(bytes / 2) } else { Err(error.into()) }
    }

    /// Whether this write or read, 0 or 1, goes to a wrong place.
    fn misses(&mut self, which: usize) -> bool {
        let one_in = [self.faults.misdirect_writes, self.faults.misdirect_reads][which];
        self.aimed[which] += 1;
        one_in != 0 && self.aimed[which].is_multiple_of(one_in)
    }

    fn write(&mut self, file: &File, at: u64, data: &[u8]) {
        let misses = data.len() > HEAD_BYTES && at > 0 && self.misses(0);
        let mut content = lock(file);
        let length = content.length();
        // Onto something that was written before, if there is anything.
        let onto = length.saturating_sub(data.len() as u64);
        if misses && onto > HEAD_BYTES as u64 && length <= at {
            let wrong =
                HEAD_BYTES as u64 + self.random.next_u64() % (onto - HEAD_BYTES as u64).max(1);
            content.is_struck(&range_of(wrong, data.len()));
            content.put(wrong, data);
            // The file is as long as if it had been written.
            content.put(at, &vec![0; data.len()]);
            content.intended.push((at, data.to_vec()));
            drop(content);
            self.effects.misdirected_writes += 1;
            return;
        }
        content.put(at, data);
        content.is_meant(at, data);
    }

    fn read(&mut self, file: &File, range: &Range<u64>) -> io::Result<Option<Vec<u8>>> {
        if self.faults.fail_reads {
            return Err(eio());
        }
        let misses = self.misses(1);
        let content = lock(file);
        if range.end > content.length() {
            return Ok(None);
        }
        if content.unreadable.iter().any(|bad| overlap(bad, range)) {
            return Err(eio());
        }
        let bytes = index(range.end - range.start);
        let places = content.length() - bytes as u64;
        let mut from = range.start;
        if misses && places > 0 {
            from = self.random.next_u64() % (places + 1);
            self.effects.misdirected_reads += u64::from(from != range.start);
        }
        Ok(Some(content.bytes[index(from)..index(from) + bytes].to_vec()))
    }
}

/// The disk as one process has it.
pub(super) struct Mount {
    pub(super) medium: Arc<Medium>,
    pub(super) life: u64,
}

struct Handle {
    medium: Arc<Medium>,
    life: u64,
    file: File,
}

impl Mount {
    fn handle(&self, file: File) -> Box<dyn DeviceFile> {
        Box::new(Handle { medium: Arc::clone(&self.medium), life: self.life, file })
    }
}

impl Device for Mount {
    fn create(&self, number: u32) -> io::Result<Box<dyn DeviceFile>> {
        let mut state = self.medium.of_life(self.life)?;
        if state.names.contains_key(&number) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        match state.faults {
            Faults { fail_writes: true, .. } => return Err(eio()),
            Faults { no_space: true, .. } => return Err(Errno::NOSPC.into()),
            _ => {}
        }
        let file = File::default();
        state.names.insert(number, Arc::clone(&file));
        Ok(self.handle(file))
    }

    fn open(&self, number: u32) -> io::Result<Box<dyn DeviceFile>> {
        let state = self.medium.of_life(self.life)?;
        let file = state.names.get(&number).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(Arc::clone(file)))
    }

    fn open_to_read(&self, number: u32) -> io::Result<Box<dyn DeviceFile>> {
        self.open(number)
    }

    fn remove(&self, number: u32) -> io::Result<()> {
        self.medium.step(Step::Remove, self.life, |state| {
            let file = state.names.remove(&number).ok_or(io::ErrorKind::NotFound)?;
            lock(&file).is_removed = true;
            state.effects.segments_deleted += 1;
            Ok(())
        })
    }

    fn sync_names(&self) -> io::Result<()> {
        self.medium.step(Step::Sync, self.life, |state| {
            if state.faults.fail_syncs {
                return Err(eio());
            }
            if !state.faults.lie_about_syncs {
                state.durable_names.clone_from(&state.names);
            }
            Ok(())
        })
    }

    fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        let state = self.medium.of_life(self.life)?;
        Ok(state.names.iter().map(|(&number, file)| (number, lock(file).length())).collect())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.medium.of_life(self.life)?;
        let room = self.medium.bytes_max.saturating_sub(state.used_bytes());
        Ok(if state.faults.no_space { 0 } else { room })
    }
}

impl DeviceFile for Handle {
    fn bytes(&self) -> io::Result<u64> {
        drop(self.medium.of_life(self.life)?);
        Ok(lock(&self.file).length())
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let range = range_of(at, buffer.len());
        let read =
            self.medium.step(Step::Read, self.life, |state| state.read(&self.file, &range))?;
        buffer.copy_from_slice(&read.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn read_exact(&self, at: u64, bytes: usize) -> io::Result<Option<Bytes>> {
        let range = range_of(at, bytes);
        let read =
            self.medium.step(Step::Read, self.life, |state| state.read(&self.file, &range))?;
        Ok(read.map(Bytes::from))
    }

    fn write(&self, at: u64, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut data: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        // A record of this length is a removal.
        let is_removal = data.len() == HEAD_BYTES && at > 0;
        let step = if is_removal { Step::Remove } else { Step::Write };
        self.medium.step(step, self.life, |state| {
            let room = self.medium.bytes_max.saturating_sub(state.used_bytes());
            data.truncate(state.admit(data.len(), room)?);
            state.write(&self.file, at, &data);
            Ok(data.len())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.medium.step(Step::Sync, self.life, |state| {
            if state.faults.fail_syncs {
                return Err(eio());
            }
            if !state.faults.lie_about_syncs {
                lock(&self.file).unsynced.clear();
            }
            Ok(())
        })
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn cut(&self, bytes: u64) -> io::Result<()> {
        drop(self.medium.of_life(self.life)?);
        lock(&self.file).cut(bytes);
        Ok(())
    }

    fn is_removed(&self) -> io::Result<bool> {
        drop(self.medium.of_life(self.life)?);
        Ok(lock(&self.file).is_removed)
    }

    fn not_needed(&self, _range: Range<u64>) {}

    // The clock is the simulator's: what fails now fails a moment later, too.
    fn rest(&self, _how_long: Duration) {}
}
