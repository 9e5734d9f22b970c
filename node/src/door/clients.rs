//! Who has a place at the door, and who makes room when none is left.
//!
//! Owns the table of connections, and which of them is in the middle of a call that goes on. Closes a
//! connection by its word only, which [`super::listen`] follows. The one idea: while there is room nobody is
//! turned away, however many come from one address; when there is none, those without a call, or in one that
//! stands still, go first, and then those who have most share with those who have least.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::shards::STALL_TIMEOUT;

/// How long a connection without a call keeps its place when others need it: time for a handshake and the
/// first call.
const SETTLE_TIME: Duration = Duration::from_secs(10);

/// How long a call in which nothing moves keeps a place when others need it: longer than the largest piece of
/// an answer takes over the slowest line, and than a slow disk is waited for. A call that may go on for ever,
/// or is not read, would hold its place as long.
const STILL_TIME: Duration = STALL_TIMEOUT;

/// Bits of an IPv6 address that are one customer's: who has one of these has all.
const CUSTOMER_BITS: u32 = 64;

/// The table.
pub(super) struct Clients {
    places_max: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    /// By age.
    taken: BTreeMap<u64, Taken>,
}

struct Taken {
    origin: IpAddr,
    calls: usize,
    /// Since when there has been no call, or no progress in one.
    since: Instant,
    cut: CancellationToken,
}

/// A place, free again when it is dropped.
pub(super) struct Place(Client);

/// Whose connection a call came on.
#[derive(Clone)]
pub(super) struct Client {
    clients: Arc<Clients>,
    number: u64,
    from: SocketAddr,
    cut: CancellationToken,
}

/// A call in progress, until it is dropped.
pub(super) struct Calling(Client);

impl Clients {
    pub(super) fn new(places_max: usize) -> Arc<Self> {
        Arc::new(Self { places_max, table: Mutex::default() })
    }

    /// A place for a newcomer; another may have to go for it. None when all are in the middle of calls that
    /// go on, and none of them has more than its share.
    pub(super) fn take(self: &Arc<Self>, from: SocketAddr) -> Option<Place> {
        let origin = origin(from.ip());
        let mut table = self.lock();
        if table.taken.len() >= self.places_max {
            let gone = table.dispensable(&origin)?;
            if let Some(gone) = table.taken.remove(&gone) {
                gone.cut.cancel();
            }
        }
        let (number, cut) = (table.next, CancellationToken::new());
        table.next += 1;
        let taken = Taken { origin, calls: 0, since: Instant::now(), cut: cut.clone() };
        table.taken.insert(number, taken);
        Some(Place(Client { clients: Arc::clone(self), number, from, cut }))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Who makes room for a newcomer of this origin.
    fn dispensable(&self, newcomer: &IpAddr) -> Option<u64> {
        let mut of_origin: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for taken in self.taken.values() {
            *of_origin.entry(taken.origin).or_default() += 1;
        }
        let count = |origin: &IpAddr| of_origin.get(origin).copied().unwrap_or(0);
        let now = Instant::now();
        let idle = |taken: &Taken| {
            now - taken.since >= if taken.calls == 0 { SETTLE_TIME } else { STILL_TIME }
        };
        // The most crowded origin; there, where nothing has moved for longest.
        let longest_idle = self
            .taken
            .iter()
            .filter(|(_, taken)| idle(taken))
            .max_by_key(|(_, taken)| (count(&taken.origin), now - taken.since));
        // The most crowded origin; there, the oldest.
        let over_share = || {
            let fair = count(newcomer) + 1;
            self.taken
                .iter()
                .rev()
                .filter(|(_, taken)| count(&taken.origin) > fair)
                .max_by_key(|(_, taken)| count(&taken.origin))
        };
        longest_idle.or_else(over_share).map(|(number, _)| *number)
    }
}

/// What counts as one origin.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let customer = u128::MAX << (u128::BITS - CUSTOMER_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & customer))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Place {
    /// Whose it is.
    pub(super) const fn client(&self) -> &Client {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.clients.lock().taken.remove(&self.0.number);
    }
}

impl Client {
    /// Ends the connection with all its calls: the only way to get back memory that HTTP/2 holds for a
    /// client which takes nothing.
    pub(super) fn cut_off(&self, why: &str) {
        tracing::debug!(from = %self.from, why, "a client at the door is cut off");
        self.cut.cancel();
    }

    /// Fires when the connection is to end.
    pub(super) const fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Notes that a call has begun.
    pub(super) fn begin(&self) -> Calling {
        if let Some(taken) = self.clients.lock().taken.get_mut(&self.number) {
            taken.calls += 1;
            taken.since = Instant::now();
        }
        Calling(self.clone())
    }

    /// Notes that a call goes on: something of it came, or was taken.
    pub(super) fn moves(&self) {
        if let Some(taken) = self.clients.lock().taken.get_mut(&self.number) {
            taken.since = Instant::now();
        }
    }

    /// For how long there has been no call; none while there is one.
    pub(super) fn idle(&self) -> Option<Duration> {
        let table = self.clients.lock();
        let taken = table.taken.get(&self.number)?;
        (taken.calls == 0).then(|| taken.since.elapsed())
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        if let Some(taken) = self.0.clients.lock().taken.get_mut(&self.0.number) {
            taken.calls -= 1;
            taken.since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u8) -> SocketAddr {
        ([192, 0, 2, number], 9).into()
    }

    fn has_gone(place: &Place) -> bool {
        place.client().cut().is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_no_call_makes_room_and_then_who_has_most() {
        let clients = Clients::new(4);
        let take = |number| clients.take(at(number));
        let crowd: Vec<Place> = (0..3).filter_map(|_| take(1)).collect();
        let other = take(2).expect("free");
        let calls: Vec<Calling> = crowd.iter().map(|place| place.client().begin()).collect();
        // A newcomer of the crowd finds nobody: the other one has just come.
        assert!(take(1).is_none());
        // Of the crowd the oldest makes room for others, until it has no more than they.
        let first = take(3).expect("the crowd has three");
        assert!(has_gone(&crowd[0]) && !has_gone(&crowd[1]));
        let second = take(4).expect("the crowd has two");
        assert!(has_gone(&crowd[1]) && !has_gone(&crowd[2]));
        assert!(take(5).is_none(), "each has one");
        // Whoever has no call goes first, wherever it is from.
        let more = [first.client().begin(), second.client().begin()];
        tokio::time::advance(SETTLE_TIME).await;
        assert!(!has_gone(&other));
        let third = take(1).expect("the idle one's");
        assert!(has_gone(&other) && !has_gone(&first) && !has_gone(&second));
        drop((crowd, calls, first, second, more, other, third));
        assert_eq!(clients.lock().taken.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_in_which_nothing_moves_makes_room() {
        let clients = Clients::new(2);
        let take = |number| clients.take(at(number));
        let (moving, still) = (take(1).expect("free"), take(2).expect("free"));
        let _calls = [moving.client().begin(), still.client().begin()];
        tokio::time::advance(STILL_TIME - Duration::from_secs(1)).await;
        moving.client().moves();
        assert!(take(3).is_none(), "not yet");
        tokio::time::advance(Duration::from_secs(1)).await;
        let _third = take(3).expect("the place of the one that stands still");
        assert!(has_gone(&still) && !has_gone(&moving));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_between_its_calls() {
        let clients = Clients::new(1);
        let place = clients.take(at(1)).expect("free");
        let client = place.client();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(client.idle(), Some(Duration::from_secs(5)));
        let (one, two) = (client.begin(), client.begin());
        drop(one);
        assert_eq!(client.idle(), None);
        drop(two);
        assert_eq!(client.idle(), Some(Duration::ZERO));
    }

    #[test]
    fn a_customer_with_many_addresses_is_one_origin() {
        let parse = |text: &str| origin(text.parse().expect("an address"));
        assert_eq!(parse("2001:db8:1:2:3::4"), parse("2001:db8:1:2:ffff::"));
        assert_ne!(parse("2001:db8:1:2::"), parse("2001:db8:1:3::"));
        assert_eq!(parse("::ffff:192.0.2.1"), parse("192.0.2.1"));
        assert_ne!(parse("192.0.2.1"), parse("192.0.2.2"));
    }
}
