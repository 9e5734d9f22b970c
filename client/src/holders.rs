//! What this client has seen of each node: alive, dead, full, lying, and how fast.
//!
//! Owns the judgement of one client for one session, from its own experience only. Never spreads it
//! and never removes a node from the ring. The one idea: every verdict expires.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use copse_core::ids::NodeId;
use copse_proto::status::{Reason, Refusal};
use tokio::time::Instant;

use crate::{latency::Latency, lock::lock};

/// How long a node is left alone after its first failure; doubled at each further one.
const BACKOFF_MIN: Duration = Duration::from_secs(1);

/// A node is tried again at the latest after this time.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// How long a node that said it is full gets no new shards. Space comes back slowly.
const FULL_FOR: Duration = Duration::from_secs(60);

/// How long a node that served something false is asked only when nobody else is left.
const DISTRUST_FOR: Duration = Duration::from_secs(600);

/// Times in a row that a node may be overtaken before it is left alone.
const OVERTAKEN_MAX: u32 = 3;

/// Every node that this client has dealt with.
#[derive(Debug, Default)]
pub struct Holders {
    nodes: Mutex<HashMap<NodeId, Arc<Holder>>>,
}

/// One node, as this client has seen it.
#[derive(Debug)]
pub struct Holder {
    id: NodeId,
    /// How long its answers took.
    pub latency: Latency,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    failed_at: Option<Instant>,
    dead_until: Option<Instant>,
    full_until: Option<Instant>,
    distrusted_until: Option<Instant>,
    lies: u32,
    overtaken: u32,
    // Whether one request is finding out if it is back.
    probing: bool,
    last_problem: Option<String>,
}

/// A holder's state at one moment, for tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderReport {
    /// The node.
    pub id: NodeId,
    /// Whether it is left alone for now, after failures.
    pub dead: bool,
    /// Whether it gets no new shards for now.
    pub full: bool,
    /// How many of its answers were false.
    pub lies: u32,
    /// The latest thing that went wrong.
    pub last_problem: Option<String>,
    /// Half of its recent answers came within this time.
    pub p50: Option<Duration>,
    /// Nine of ten of its recent answers came within this time.
    pub p90: Option<Duration>,
}

impl Holders {
    /// The holder with this id; a new one is taken to be well.
    pub fn get(&self, id: NodeId) -> Arc<Holder> {
        let mut nodes = lock(&self.nodes);
        Arc::clone(nodes.entry(id).or_insert_with(|| {
            Arc::new(Holder { id, latency: Latency::default(), state: Mutex::default() })
        }))
    }
}

impl Holder {
    /// The node's id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// It answered as it should.
    pub fn answered(&self, took: Duration) {
        self.latency.record(took);
        self.is_alive();
    }

    /// It showed signs of life, without an answer whose time would be worth remembering.
    pub fn is_alive(&self) {
        let mut state = lock(&self.state);
        state.failures = 0;
        state.overtaken = 0;
        state.probing = false;
        state.dead_until = None;
    }

    /// Others answered in its place before it did. Several times in a row count as a failure:
    /// otherwise each read would wait for it anew.
    pub fn overtaken(&self) {
        let overtaken = {
            let mut state = lock(&self.state);
            state.overtaken = state.overtaken.saturating_add(1);
            state.overtaken
        };
        if overtaken >= OVERTAKEN_MAX {
            self.failed("it is much slower than the others");
        }
    }

    /// A request is being sent to it. After failures, one request finds out whether it is back, and
    /// until that one is answered the node stays left alone: otherwise all that go on at once would
    /// wait for it.
    pub fn begin(&self) {
        lock(&self.state).begin(Instant::now());
    }

    /// It could not be reached, or did not answer in time. It is left alone for a while, longer at
    /// each failure in a row.
    pub fn failed(&self, problem: impl Into<String>) {
        lock(&self.state).failed(problem.into(), Instant::now());
    }

    /// It refused a shard for lack of space.
    pub fn full(&self, problem: impl Into<String>) {
        lock(&self.state).full(problem.into(), Instant::now());
    }

    /// It served something false: wrong bytes, a wrong proof, another shard, a bad receipt.
    pub fn lied(&self, problem: impl Into<String>) {
        lock(&self.state).lied(problem.into(), Instant::now());
    }

    /// It did not do what it was asked to: what its refusal says of it.
    pub fn refused(&self, refusal: &Refusal) {
        let problem = refusal.to_string();
        match refusal.reason() {
            Reason::StoreFull => self.full(problem),
            Reason::BadReply => self.lied(problem),
            _ => self.failed(problem),
        }
    }

    /// Whether it is worth a read now.
    pub fn can_read(&self) -> bool {
        lock(&self.state).can_read(Instant::now())
    }

    /// Whether it is worth a new shard now.
    pub fn can_store(&self) -> bool {
        lock(&self.state).can_store(Instant::now())
    }

    /// Whether it is left alone after failures.
    pub fn is_dead(&self) -> bool {
        after(lock(&self.state).dead_until, Instant::now())
    }

    /// Whether it has failed since it last answered.
    pub fn has_failed(&self) -> bool {
        lock(&self.state).failures > 0
    }

    /// Whether it failed within this time, and has not answered since.
    pub fn has_failed_within(&self, time: Duration) -> bool {
        lock(&self.state).has_failed_within(time, Instant::now())
    }

    /// Whether it has served something false lately.
    pub fn is_distrusted(&self) -> bool {
        after(lock(&self.state).distrusted_until, Instant::now())
    }

    /// Its state now.
    pub fn report(&self) -> HolderReport {
        let now = Instant::now();
        let state = lock(&self.state);
        HolderReport {
            id: self.id,
            dead: after(state.dead_until, now),
            full: after(state.full_until, now),
            lies: state.lies,
            last_problem: state.last_problem.clone(),
            p50: self.latency.p50(),
            p90: self.latency.p90(),
        }
    }
}

impl State {
    fn failed(&mut self, problem: String, now: Instant) {
        self.last_problem = Some(problem);
        self.failed_at = Some(now);
        // Many requests fail together when a node dies: that is one failure.
        if after(self.dead_until, now) && !self.probing {
            return;
        }
        self.dead_until = Some(now + self.backoff());
        self.failures = self.failures.saturating_add(1);
        self.probing = false;
    }

    fn begin(&mut self, now: Instant) {
        if self.failures > 0 && !after(self.dead_until, now) {
            self.dead_until = Some(now + self.backoff());
            self.probing = true;
        }
    }

    fn backoff(&self) -> Duration {
        BACKOFF_MIN.saturating_mul(1 << self.failures.min(6)).min(BACKOFF_MAX)
    }

    fn full(&mut self, problem: String, now: Instant) {
        self.last_problem = Some(problem);
        self.full_until = Some(now + FULL_FOR);
    }

    fn lied(&mut self, problem: String, now: Instant) {
        self.last_problem = Some(problem);
        self.lies = self.lies.saturating_add(1);
        self.distrusted_until = Some(now + DISTRUST_FOR);
    }

    fn has_failed_within(&self, time: Duration, now: Instant) -> bool {
        self.failures > 0 && self.failed_at.is_some_and(|at| now < at + time)
    }

    fn can_read(&self, now: Instant) -> bool {
        !after(self.dead_until, now) && !after(self.distrusted_until, now)
    }

    fn can_store(&self, now: Instant) -> bool {
        self.can_read(now) && !after(self.full_until, now)
    }
}

fn after(until: Option<Instant>, now: Instant) -> bool {
    until.is_some_and(|until| until > now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_node_is_left_alone_longer_each_time() {
        let mut state = State::default();
        let mut now = Instant::now();
        for backoff in [1, 2, 4, 8, 16, 32, 60, 60] {
            state.failed("connection refused".to_owned(), now);
            state.failed("connection refused".to_owned(), now);
            now += Duration::from_secs(backoff) - Duration::from_millis(1);
            assert!(!state.can_read(now), "forgotten before {backoff} s");
            now += Duration::from_millis(2);
            assert!(state.can_read(now), "still dead after {backoff} s");
        }
    }

    #[test]
    fn one_request_at_a_time_finds_out_whether_a_node_is_back() {
        let mut state = State::default();
        let mut now = Instant::now();
        state.begin(now);
        assert!(state.can_read(now), "a well node serves many at once");
        state.failed("connection refused".to_owned(), now);
        now += Duration::from_millis(1001);
        assert!(state.can_read(now));
        state.begin(now);
        assert!(!state.can_read(now));
        state.failed("connection refused".to_owned(), now);
        now += Duration::from_millis(1999);
        assert!(!state.can_read(now));
        now += Duration::from_millis(2);
        assert!(state.can_read(now));
    }

    #[test]
    fn a_node_has_failed_lately_until_it_answers_or_some_time_is_over() {
        let holder = Holders::default().get(NodeId::new([1; 32]));
        let lately = |seconds| holder.has_failed_within(Duration::from_secs(seconds));
        assert!(!lately(10));
        holder.failed("connection refused");
        assert!(lately(10) && !lately(0));
        holder.is_alive();
        assert!(!lately(10));
    }

    #[test]
    fn a_node_that_answers_is_forgiven_and_its_last_problem_kept() {
        let holders = Holders::default();
        let holder = holders.get(NodeId::new([1; 32]));
        holder.failed("connection refused");
        assert!(holder.is_dead() && !holder.can_store());
        holder.answered(Duration::from_millis(1));
        assert!(!holder.is_dead() && holder.can_store());
        assert_eq!(holder.report().last_problem.as_deref(), Some("connection refused"));
    }

    #[test]
    fn what_a_node_refuses_for_says_how_it_is() {
        for (reason, dead, full, lies) in [
            (Reason::StoreFull, false, true, 0),
            (Reason::BadReply, false, false, 1),
            (Reason::NodeUnreachable, true, false, 0),
            (Reason::StoreFailed, true, false, 0),
            (Reason::Malformed, true, false, 0),
        ] {
            let holder = Holders::default().get(NodeId::new([1; 32]));
            holder.refused(&Refusal::new(reason, "no"));
            let report = holder.report();
            assert_eq!((report.dead, report.full, report.lies), (dead, full, lies), "{reason:?}");
            assert!(report.last_problem.is_some());
        }
    }

    #[test]
    fn a_node_that_is_overtaken_time_and_again_counts_as_failed() {
        let holder = Holders::default().get(NodeId::new([1; 32]));
        holder.overtaken();
        holder.overtaken();
        assert!(!holder.is_dead());
        holder.overtaken();
        assert!(holder.is_dead());
    }

    #[test]
    fn a_full_node_is_still_read_and_a_liar_is_not() {
        let (mut full, mut liar) = (State::default(), State::default());
        let now = Instant::now();
        full.full("disk full".to_owned(), now);
        liar.lied("another shard's bytes".to_owned(), now);
        assert!(full.can_read(now) && !full.can_store(now));
        assert!(!liar.can_read(now) && !liar.can_store(now));
        let later = now + DISTRUST_FOR + Duration::from_secs(1);
        assert!(full.can_store(later) && liar.can_read(later));
    }
}
