//! The links between machines: delay, loss, rate, cuts.
//!
//! Owns who can reach whom and when what is sent arrives. Knows nothing of what is sent. A link is
//! from one machine to another, so each direction can be cut by itself. Packets of a link arrive in
//! order unless the world reorders.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    killat::{Deed, Fuse},
    stream::Dialled,
    trace::Trace,
    udp::{Inbox, Packet},
    uneven::Uneven,
};
use crate::random::Xoshiro;

/// A machine's number; its address is 10.0.x.y.
pub(super) type Machine = u16;

/// What waits for a link longer than this is dropped, as by a router with 100 ms of buffer.
const QUEUE: Duration = Duration::from_millis(100);

/// Larger packets do not fit through, in bytes: Ethernet's.
const MTU_BYTES: usize = 1500;

/// How links are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Quality {
    /// One way, at least.
    pub(super) delay: Duration,
    /// Up to so much more, drawn for each packet.
    pub(super) jitter: Duration,
    /// Part of the packets that are lost.
    pub(super) loss: f64,
    /// Packets may overtake each other.
    pub(super) reorders: bool,
    /// Bytes per second of each link.
    pub(super) rate: u64,
}

/// How the line of one machine is worse than the links of all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Line {
    /// So much more, one way.
    pub(super) delay: Duration,
    /// Packets that are lost besides.
    pub(super) loss: f64,
}

/// The network. Clones are the same one.
#[derive(Clone)]
pub(super) struct Net(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Something was sent that may arrive before what was awaited.
    sent: Notify,
    trace: Trace,
}

struct State {
    rng: Xoshiro,
    quality: Quality,
    /// How links differ from that, if they do.
    uneven: Option<Uneven>,
    /// Lines that are worse than others.
    lines: BTreeMap<Machine, Line>,
    /// Links that are cut, with how often: faults overlap.
    cuts: BTreeMap<(Machine, Machine), u32>,
    /// Machines without power or process.
    off: BTreeSet<Machine>,
    /// Those whose process may die at what it sends or receives.
    fuses: BTreeMap<Machine, Fuse>,
    inboxes: BTreeMap<SocketAddr, Arc<Inbox>>,
    listeners: BTreeMap<SocketAddr, mpsc::Sender<Dialled>>,
    /// Open streams, by the two machines.
    streams: Vec<(Machine, Machine, CancellationToken)>,
    /// Until when each link is busy with what was sent before, and when the last of it arrives.
    busy: BTreeMap<(Machine, Machine), (Instant, Instant)>,
    flying: BinaryHeap<Reverse<Flight>>,
    flights: u64,
    overtaken: u64,
}

struct Flight {
    at: Instant,
    number: u64,
    to: SocketAddr,
    packet: Packet,
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Flight {}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// The address of a machine.
pub(super) fn address(machine: Machine, port: u16) -> SocketAddr {
    let [high, low] = machine.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, 0, high, low), port))
}

/// The machine with an address.
pub(super) fn machine(address: SocketAddr) -> Machine {
    match address.ip() {
        IpAddr::V4(ip) => {
            let [_, _, high, low] = ip.octets();
            Machine::from_be_bytes([high, low])
        }
        IpAddr::V6(_) => Machine::MAX,
    }
}

impl Net {
    pub(super) fn new(rng: Xoshiro, quality: Quality, trace: Trace) -> Self {
        let state = State {
            rng,
            quality,
            uneven: None,
            lines: BTreeMap::new(),
            cuts: BTreeMap::new(),
            off: BTreeSet::new(),
            fuses: BTreeMap::new(),
            inboxes: BTreeMap::new(),
            listeners: BTreeMap::new(),
            streams: Vec::new(),
            busy: BTreeMap::new(),
            flying: BinaryHeap::new(),
            flights: 0,
            overtaken: 0,
        };
        Self(Arc::new(Inner { state: Mutex::new(state), sent: Notify::new(), trace }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn trace(&self) -> &Trace {
        &self.0.trace
    }

    /// Tells a fuse of what its machine sends and receives.
    pub(super) fn watch(&self, machine: Machine, fuse: &Fuse) {
        self.lock().fuses.insert(machine, fuse.clone());
    }

    /// A machine is about to send or receive something, or has done it.
    pub(super) fn deed(&self, machine: Machine, deed: Deed, is_done: bool) {
        let fuse = self.lock().fuses.get(&machine).cloned();
        if let Some(fuse) = fuse {
            fuse.deed(deed, is_done);
        }
    }

    /// From here on each link is by itself, around what is usual now.
    pub(super) fn make_uneven(&self, seed: u64) {
        let mut state = self.lock();
        state.uneven = Some(Uneven::new(seed, state.quality));
    }

    /// Changes how all links are.
    pub(super) fn set_quality(&self, quality: Quality) {
        self.lock().quality = quality;
    }

    /// Makes the line of a machine worse than others, or as they are.
    pub(super) fn set_line(&self, machine: Machine, line: Line) {
        self.lock().lines.insert(machine, line);
    }

    /// Cuts or mends one direction. As often as it was cut it must be mended.
    pub(super) fn cut(&self, from: Machine, to: Machine, is_cut: bool) {
        let mut state = self.lock();
        let cuts = state.cuts.entry((from, to)).or_default();
        *cuts = if is_cut { *cuts + 1 } else { cuts.saturating_sub(1) };
    }

    /// Nothing reaches a machine any more and nothing leaves it. With `reset` its streams are closed
    /// in the eyes of the others, as when a process dies; without, they go silent.
    pub(super) fn unplug(&self, machine: Machine, reset: bool) {
        let mut state = self.lock();
        state.off.insert(machine);
        state.inboxes.retain(|address, _| self::machine(*address) != machine);
        state.listeners.retain(|address, _| self::machine(*address) != machine);
        state.streams.retain(|(one, other, closed)| {
            let is_open = *one != machine && *other != machine;
            if !is_open && reset {
                closed.cancel();
            }
            is_open || !reset
        });
    }

    /// A machine is on again; what it held open is gone.
    pub(super) fn plug(&self, machine: Machine) {
        let mut state = self.lock();
        state.off.remove(&machine);
        state.streams.retain(|(one, other, closed)| {
            let is_other = *one != machine && *other != machine;
            if !is_other {
                closed.cancel();
            }
            is_other && !closed.is_cancelled()
        });
    }

    pub(super) fn listen_udp(&self, address: SocketAddr, inbox: &Arc<Inbox>) {
        self.lock().inboxes.insert(address, Arc::clone(inbox));
    }

    pub(super) fn listen(&self, address: SocketAddr, dialled: mpsc::Sender<Dialled>) {
        self.lock().listeners.insert(address, dialled);
    }

    /// Whether what is sent now from one machine to another gets through.
    pub(super) fn is_open(&self, from: Machine, to: Machine) -> bool {
        self.lock().is_open(from, to)
    }

    /// When bytes of a stream that are sent now arrive; none while the link is cut.
    pub(super) fn arrival(&self, from: Machine, to: Machine, bytes: usize) -> Option<Instant> {
        let mut state = self.lock();
        if !state.is_open(from, to) {
            return None;
        }
        // A stream's losses show as delay: the retransmission.
        let lost = state.loss(from, to);
        let again =
            if state.rng.chance(lost) { Duration::from_millis(200) } else { Duration::ZERO };
        state.arrival(from, to, bytes, Duration::MAX).map(|at| at + again)
    }

    /// Who accepts at an address; an error when the machine is there and nobody does.
    pub(super) fn acceptor(&self, to: SocketAddr) -> io::Result<mpsc::Sender<Dialled>> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        self.lock().listeners.get(&to).cloned().ok_or_else(refused)
    }

    /// A stream stands; the token closes it.
    pub(super) fn opened(&self, one: Machine, other: Machine, closed: &CancellationToken) {
        let mut state = self.lock();
        state.streams.retain(|(_, _, closed)| !closed.is_cancelled());
        state.streams.push((one, other, closed.clone()));
    }

    /// Streams that are open, and packets that are under way.
    pub(super) fn load(&self) -> (usize, usize) {
        let state = self.lock();
        let open = state.streams.iter().filter(|(_, _, closed)| !closed.is_cancelled());
        (open.count(), state.flying.len())
    }

    /// Packets and pieces of streams that arrive before what was sent earlier on the same link.
    pub(super) fn overtaken(&self) -> u64 {
        self.lock().overtaken
    }

    /// Sends a packet. Like the real thing it says nothing about arrival.
    pub(super) fn send(&self, to: SocketAddr, packet: Packet) {
        let (from, bytes) = (packet.from, packet.data.len());
        let (source, target) = (machine(from), machine(to));
        self.deed(source, Deed::Send, false);
        let mut state = self.lock();
        let loss = state.loss(source, target);
        let fate = if state.rng.chance(loss) || bytes > MTU_BYTES || !state.is_open(source, target)
        {
            None
        } else {
            state.arrival(source, target, bytes, QUEUE)
        };
        let Some(at) = fate else {
            drop(state);
            self.0.trace.bytes("lost", from, to, bytes);
            self.deed(source, Deed::Send, true);
            return;
        };
        state.flights += 1;
        let number = state.flights;
        let is_next = state.flying.peek().is_none_or(|Reverse(first)| at < first.at);
        state.flying.push(Reverse(Flight { at, number, to, packet }));
        drop(state);
        if is_next {
            self.0.sent.notify_one();
        }
        self.0.trace.bytes("sent", from, to, bytes);
        self.deed(source, Deed::Send, true);
    }

    /// Lets packets arrive when it is time, for ever.
    pub(super) async fn deliver(self) {
        loop {
            let sent = self.0.sent.notified();
            let next = self.lock().flying.peek().map(|Reverse(flight)| flight.at);
            match next {
                None => sent.await,
                Some(at) if at <= Instant::now() => {
                    let mut state = self.lock();
                    let Some(Reverse(flight)) = state.flying.pop() else { continue };
                    let from = machine(flight.packet.from);
                    let is_open = state.is_open(from, machine(flight.to));
                    let inbox = state.inboxes.get(&flight.to).filter(|_| is_open).cloned();
                    drop(state);
                    if let Some(inbox) = inbox {
                        let target = machine(flight.to);
                        self.deed(target, Deed::Receive, false);
                        inbox.put(flight.packet);
                        self.deed(target, Deed::Receive, true);
                    }
                }
                Some(at) => tokio::select! {
                    biased;
                    () = sent => {}
                    () = tokio::time::sleep_until(at) => {}
                },
            }
        }
    }
}

impl State {
    fn is_open(&self, from: Machine, to: Machine) -> bool {
        let is_cut = self.cuts.get(&(from, to)).is_some_and(|cuts| *cuts > 0);
        !is_cut && !self.off.contains(&from) && !self.off.contains(&to)
    }

    /// Both ends of a link, where their lines are worse than others.
    fn ends(&self, from: Machine, to: Machine) -> impl Iterator<Item = &Line> {
        [from, to].into_iter().filter_map(|machine| self.lines.get(&machine))
    }

    /// How a link is, but for the lines at its ends.
    fn quality(&mut self, from: Machine, to: Machine) -> Quality {
        let now = self.quality;
        self.uneven.as_mut().map_or(now, |links| links.quality(from, to, now))
    }

    fn loss(&mut self, from: Machine, to: Machine) -> f64 {
        let loss = self.quality(from, to).loss;
        self.ends(from, to).fold(loss, |loss, line| (loss + line.loss).min(1.0))
    }

    /// When something sent now arrives; none when more than `queue` waits for the link before it.
    fn arrival(
        &mut self,
        from: Machine,
        to: Machine,
        bytes: usize,
        queue: Duration,
    ) -> Option<Instant> {
        let now = Instant::now();
        let (free, last) = self.busy.get(&(from, to)).copied().unwrap_or((now, now));
        let start = free.max(now);
        if start.duration_since(now) > queue {
            return None;
        }
        let quality = self.quality(from, to);
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / quality.rate.max(1);
        let sent = start + Duration::from_nanos(nanos);
        let jitter = quality.jitter.mul_f64(self.rng.unit());
        let worse: Duration = self.ends(from, to).map(|line| line.delay).sum();
        let mut at = sent + quality.delay + worse + jitter;
        if quality.reorders {
            self.overtaken += u64::from(at < last);
        } else {
            at = at.max(last);
        }
        self.busy.insert((from, to), (sent, at.max(last)));
        Some(at)
    }
}
