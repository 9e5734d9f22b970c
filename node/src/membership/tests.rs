//! Memberships of real endpoints on the loopback address, from one contact to all knowing all.

use std::sync::{
    Condvar,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use bytes::Bytes;
use copse_core::{directory::NodeState, eviction::Observation, repair::Standing};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{memory::FileMemory, *};
use crate::{
    peer::{
        Answer, Op, Outcome, PeerError, PeerHandler,
        endpoint::{Congestion, PeerSocket, bind, open},
        pool::PeerPool,
        server::{Limits, serve},
    },
    tls::NodeTls,
};

const NETWORK: NetworkId = NetworkId::new([7; 32]);

/// How long a condition is waited for: many times what it takes.
const PATIENCE: Duration = Duration::from_secs(120);

struct Handler(Membership, PeerPool);

#[async_trait::async_trait]
impl PeerHandler for Handler {
    async fn handle(
        &self,
        from: NodeId,
        op: Op,
        _body: Bytes,
        _background: bool,
    ) -> Result<Answer, Refusal> {
        match op {
            Op::Gossip(message) => Ok(Outcome::Gossip(self.0.gossip(from, &message).await?).into()),
            Op::Reconcile(message) => {
                Ok(Outcome::Reconcile(self.0.reconcile(from, &message)?).into())
            }
            Op::Ping(_) => Ok(Outcome::Ping(copse_proto::peer::Pong {}).into()),
            _ => Err(Refusal::new(Reason::UnknownOperation, "only gossip here")),
        }
    }

    fn heard(&self, from: NodeId) {
        self.1.heard(from);
    }
}

fn record(key: &NodeKey, seq: u64) -> NodeRecord {
    NodeRecord {
        network: NETWORK,
        node: key.id(),
        seq,
        addresses: vec![([192, 0, 2, 7], 7400).into()],
        grpc: Vec::new(),
        relays: Vec::new(),
        zone: String::new(),
        capacity_bytes: 1 << 30,
        state: NodeState::Active,
        version: "test".to_owned(),
    }
}

fn signed(number: u8, seq: u64) -> SignedRecord {
    let key = NodeKey::from_seed([number; 32]);
    SignedRecord::sign(record(&key, seq), &key).expect("a valid record")
}

fn observed(observer: u8, subject: u8, subject_seq: u64, observed_at: u64) -> SignedObservation {
    let key = NodeKey::from_seed([observer; 32]);
    let observation = Observation {
        network: NETWORK,
        observer: key.id(),
        subject: NodeKey::from_seed([subject; 32]).id(),
        subject_seq,
        silent_seconds: 14_400,
        observed_at,
    };
    SignedObservation::sign(observation, &key).expect("a valid observation")
}

struct Node {
    membership: Membership,
    pool: PeerPool,
    contact: Contact,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    endpoint: quinn::Endpoint,
}

struct Start {
    /// Bound already.
    socket: Option<std::net::UdpSocket>,
    number: u8,
    network: NetworkId,
    seq: u64,
    address: SocketAddr,
    contacts: Vec<Contact>,
    memory: Option<Arc<dyn Memory>>,
    addresses_found: bool,
    timeouts: Timeouts,
}

fn start(number: u8, contacts: &[Contact]) -> Start {
    let (network, address) = (NETWORK, ([127, 0, 0, 1], 0).into());
    let contacts = contacts.to_vec();
    Start {
        socket: None,
        number,
        network,
        seq: 1,
        address,
        contacts,
        memory: None,
        addresses_found: true,
        timeouts: Timeouts::default(),
    }
}

impl Start {
    fn go(self) -> Node {
        // A restarted node must not draw the same connection ids again.
        static RUN: AtomicU8 = AtomicU8::new(0);
        let seed = [RUN.fetch_add(1, Ordering::Relaxed); 32];
        let key = NodeKey::from_seed([self.number; 32]);
        let tls = NodeTls::from_seed(&[self.number; 32]).expect("a key");
        assert_eq!(tls.id(), key.id());
        let socket = self.socket.unwrap_or_else(|| bind(self.address).expect("a port"));
        let socket = PeerSocket::Udp(socket);
        let endpoint = open(&tls, socket, Congestion::Cubic, seed).expect("an endpoint");
        let address = endpoint.local_addr().expect("an address");
        let contact = Contact { node: key.id(), addresses: vec![address] };
        let record = NodeRecord {
            network: self.network,
            addresses: vec![address],
            ..record(&key, self.seq)
        };
        let membership = Membership::new(Options {
            key,
            record,
            contacts: self.contacts,
            memory: self.memory,
            addresses_found: self.addresses_found,
            seed,
            timeouts: self.timeouts,
            clock: Arc::new(|| 1_700_000_000),
            events: Events::default(),
        })
        .expect("a valid record");
        let pool = PeerPool::new(endpoint.clone(), contact.node, Arc::new(membership.clone()), 1);
        let stop = CancellationToken::new();
        let handler = Arc::new(Handler(membership.clone(), pool.clone()));
        let serving = serve(endpoint.clone(), handler, Limits::default(), stop.clone());
        let running = {
            let (membership, pool, stop) = (membership.clone(), pool.clone(), stop.clone());
            async move { membership.run(pool, stop).await }
        };
        let tasks = vec![tokio::spawn(serving), tokio::spawn(running)];
        Node { membership, pool, contact, stop, tasks, endpoint }
    }
}

impl Node {
    fn known(&self) -> usize {
        self.membership.with(Directory::len)
    }

    /// Ends it; its address is free then.
    async fn end(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.expect("no panic");
        }
        self.endpoint.wait_idle().await;
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn all_know_all(nodes: &[Node]) -> bool {
    let digests = |node: &Node| node.membership.with(|directory| *directory.digests());
    nodes.iter().all(|node| node.known() == nodes.len() && digests(node) == digests(&nodes[0]))
}

#[tokio::test]
async fn eight_nodes_started_from_one_address_know_each_other() {
    let mut nodes = vec![start(1, &[]).go()];
    let contact = nodes[0].contact.clone();
    nodes.extend((2..=8).map(|number| start(number, std::slice::from_ref(&contact)).go()));
    until("all know all", || all_know_all(&nodes)).await;
    let rings: Vec<usize> =
        nodes.iter().map(|node| node.membership.with(|all| all.ring().len())).collect();
    assert_eq!(rings, [8; 8]);
    for node in nodes {
        node.end().await;
    }
}

#[tokio::test]
async fn a_restarted_node_finds_its_peers_by_what_it_remembers() {
    let dir = tempfile::tempdir().expect("a directory");
    let memory: Arc<dyn Memory> = Arc::new(FileMemory::new(dir.path().join("peers")));
    let mut nodes = vec![start(1, &[]).go()];
    let contact = nodes[0].contact.clone();
    nodes.push(start(2, std::slice::from_ref(&contact)).go());
    let third = Start { memory: Some(Arc::clone(&memory)), ..start(3, &[contact]) }.go();
    until("the third knows all", || third.known() == 3).await;
    third.end().await;
    // The node by which it joined is gone for good; meanwhile a fourth has come.
    nodes.push(start(4, std::slice::from_ref(&nodes[1].contact)).go());
    until("the fourth knows all", || nodes[2].known() == 4).await;
    nodes.remove(0).end().await;

    // No contact, another address, and a clock that went back.
    let third = Start { memory: Some(memory), seq: 0, ..start(3, &[]) }.go();
    let own = third.membership.own().expect("its own record");
    assert_eq!(own.record().seq, 2, "one more than it remembers of itself");
    until("it knows the one that came meanwhile", || third.known() == 4).await;
    until("the others know where it is now", || {
        nodes.iter().all(|node| {
            let known = node.membership.get(&third.contact.node);
            known.is_some_and(|signed| signed.record() == own.record())
        })
    })
    .await;
}

#[tokio::test]
async fn who_was_heard_is_remembered_as_such_and_who_was_made_up_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let memory: Arc<dyn Memory> = Arc::new(FileMemory::new(dir.path().join("peers")));
    let first = Start { memory: Some(Arc::clone(&memory)), ..start(1, &[]) }.go();
    let second = start(2, std::slice::from_ref(&first.contact)).go();
    let made_up = signed(9, 1);
    let news = Bundle { records: vec![made_up.clone()], observations: Vec::new() };
    let (records, observations) = told(&news);
    let message = GossipMessage { network_id: NETWORK.as_bytes().to_vec(), records, observations };
    first.membership.gossip(second.contact.node, &message).await.expect("taken in");
    let remembered = || {
        let bytes = memory.load().expect("readable");
        bytes.map(|bytes| memory::decode(&bytes, NETWORK).expect("as written")).unwrap_or_default()
    };
    let others: Vec<NodeId> = vec![second.contact.node, made_up.node()];
    until("all is remembered", || {
        let Remembered { records, heard, .. } = remembered();
        let known: Vec<NodeId> = records.iter().map(SignedRecord::node).collect();
        others.iter().all(|other| known.contains(other)) && heard.contains(&others[0])
    })
    .await;
    assert!(!remembered().heard.contains(&made_up.node()));
    first.end().await;
}

/// Node 1 of eight at this time, which remembers that node 8 was evicted by 1, 2, and 3.
fn remembering(clock: u64, observed_at: u64) -> Membership {
    struct Bytes(Vec<u8>);
    impl Memory for Bytes {
        fn load(&self) -> std::io::Result<Option<Vec<u8>>> {
            Ok(Some(self.0.clone()))
        }

        fn store(&self, _bytes: &[u8]) -> std::io::Result<()> {
            Ok(())
        }
    }
    let records: Vec<_> = (1..=8).map(|number| signed(number, 1_700_000_000)).collect();
    let observations = [1, 2, 3].map(|observer| observed(observer, 8, 1_700_000_000, observed_at));
    let all: Vec<&SignedRecord> = records.iter().collect();
    let key = NodeKey::from_seed([1; 32]);
    Membership::new(Options {
        record: record(&key, clock),
        key,
        contacts: Vec::new(),
        memory: Some(Arc::new(Bytes(memory::encode(NETWORK, &all, &[], &observations)))),
        addresses_found: true,
        seed: [1; 32],
        timeouts: Timeouts::default(),
        clock: Arc::new(move || clock),
        events: Events::default(),
    })
    .expect("a valid record")
}

#[tokio::test]
async fn a_clock_that_is_wrong_brings_back_no_evicted_node() {
    let dead = NodeKey::from_seed([8; 32]).id();
    let evicted = |membership: &Membership| membership.with(|all| all.evicted(&dead).is_some());
    // The machine has no clock of its own and begins in 1970.
    let membership = remembering(5_000, 1_700_100_000);
    membership.forget_early();
    assert!(evicted(&membership));
    let late = observed(4, 8, 1_700_000_000, 1_700_100_001);
    let (records, observations) = told(&Bundle { records: vec![], observations: vec![late] });
    let from = NodeKey::from_seed([2; 32]).id();
    assert_eq!(membership.receive(from, &records, &observations).await.news, 1);
    // Its clock was ahead, and is right now: nobody else ever took that in.
    let membership = remembering(1_700_000_001, 1_730_000_000);
    assert!(evicted(&membership));
    membership.forget_early();
    assert!(!evicted(&membership));
    assert_eq!(membership.receive(from, &records, &observations).await.early, 1);
}

#[tokio::test]
async fn a_node_that_started_before_its_network_is_found_where_it_was_and_then_where_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let memory: Arc<dyn Memory> = Arc::new(FileMemory::new(dir.path().join("peers")));
    let first = start(1, &[]).go();
    let contacts = [first.contact.clone()];
    let node = Start { memory: Some(Arc::clone(&memory)), ..start(2, &contacts) }.go();
    until("it is known", || first.known() == 2 && node.known() == 2).await;
    let told = node.contact.addresses.clone();
    node.end().await;

    let node = Start { memory: Some(memory), addresses_found: false, ..start(2, &contacts) }.go();
    let own = || node.membership.own().expect("its own record").record().clone();
    assert_eq!(own().addresses, told, "what it told before, not what it has without a route");
    let seq = own().seq;
    node.membership.set_addresses(told, Vec::new()).expect("signed");
    assert_eq!(own().seq, seq, "nothing new, nothing signed");
    let moved = vec![([192, 0, 2, 7], 7400).into()];
    node.membership.set_addresses(moved.clone(), Vec::new()).expect("signed");
    until("the other knows", || {
        let known = first.membership.get(&node.contact.node);
        known.is_some_and(|known| known.record().addresses == moved)
    })
    .await;
}

#[tokio::test]
async fn a_node_without_memory_signs_above_what_the_network_knows_of_it() {
    let first = start(1, &[]).go();
    let contacts = [first.contact.clone()];
    let old = Start { seq: 100, ..start(2, &contacts) }.go();
    until("it is known", || first.known() == 2).await;
    let id = old.contact.node;
    old.end().await;
    let new = Start { seq: 5, ..start(2, &contacts) }.go();
    until("its new record is known", || {
        first.membership.get(&id).is_some_and(|signed| signed.record().seq == 101)
    })
    .await;
    let known = first.membership.get(&id).expect("known");
    assert_eq!(known.record().addresses, new.contact.addresses);
}

#[tokio::test]
async fn a_node_of_another_network_is_refused_with_the_reason() {
    let first = start(1, &[]).go();
    let other = NetworkId::new([8; 32]);
    let stranger = Start { network: other, ..start(2, std::slice::from_ref(&first.contact)) }.go();
    let error = stranger
        .membership
        .compare(&stranger.pool, &first.contact)
        .await
        .expect_err("another network");
    let refusal = error.refusal().expect("refused by the node itself");
    assert_eq!(refusal.reason(), Reason::WrongNetwork);
    assert!(refusal.message().contains(&NETWORK.to_string()), "{refusal}");
    assert_eq!((first.known(), stranger.known()), (1, 1));
}

#[tokio::test]
async fn a_late_contact_is_waited_for() {
    // Nobody else gets its port meanwhile.
    let socket = bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = socket.local_addr().expect("an address");
    let contact = Contact { node: NodeKey::from_seed([1; 32]).id(), addresses: vec![address] };
    let second = start(2, &[contact]).go();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let first = Start { socket: Some(socket), ..start(1, &[]) }.go();
    until("they met", || first.known() == 2 && second.known() == 2).await;
}

/// Says that it is there, and nothing else.
struct Mute;

#[async_trait::async_trait]
impl PeerHandler for Mute {
    async fn handle(
        &self,
        _from: NodeId,
        op: Op,
        _body: Bytes,
        _background: bool,
    ) -> Result<Answer, Refusal> {
        match op {
            Op::Ping(_) => Ok(Outcome::Ping(copse_proto::peer::Pong {}).into()),
            _ => std::future::pending().await,
        }
    }
}

#[tokio::test]
async fn who_tells_nothing_is_not_waited_for_for_long() {
    let first = start(1, &[]).go();
    let tls = NodeTls::from_seed(&[2; 32]).expect("a key");
    let socket = PeerSocket::Udp(bind(([127, 0, 0, 1], 0).into()).expect("a port"));
    let endpoint = open(&tls, socket, Congestion::Cubic, [99; 32]).expect("an endpoint");
    let contact =
        Contact { node: tls.id(), addresses: vec![endpoint.local_addr().expect("an address")] };
    tokio::spawn(serve(endpoint, Arc::new(Mute), Limits::default(), CancellationToken::new()));
    let compared = first.membership.compare(&first.pool, &contact);
    let compared = tokio::time::timeout(PATIENCE, compared).await.expect("it ends by itself");
    let Err(PeerError::TimedOut { waited, .. }) = compared else { panic!("{compared:?}") };
    // Half of what an answer to other requests may take.
    assert!(waited <= Duration::from_secs(30), "{waited:?}");
}

/// A disk that takes nothing more until it is let go.
#[derive(Default)]
struct Hung {
    asked: AtomicBool,
    let_go: (Mutex<bool>, Condvar),
}

impl Memory for Hung {
    fn load(&self) -> std::io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn store(&self, _bytes: &[u8]) -> std::io::Result<()> {
        self.asked.store(true, Ordering::Relaxed);
        let (let_go, changed) = &self.let_go;
        let held = let_go.lock().expect("not poisoned");
        drop(changed.wait_while(held, |let_go| !*let_go).expect("not poisoned"));
        Ok(())
    }
}

// With threads, or what blocks would block the test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_hangs_still_sees_who_answers() {
    let disk = Arc::new(Hung::default());
    let timeouts = Timeouts {
        ping_every: Duration::from_millis(200),
        suspect_after: Duration::from_secs(1),
        down_after: Duration::from_secs(3),
        ..Timeouts::default()
    };
    let first = Start { memory: Some(disk.clone()), timeouts, ..start(1, &[]) }.go();
    let second = start(2, std::slice::from_ref(&first.contact)).go();
    let id = second.contact.node;
    let stands = || first.membership.now().standings.get(&id).copied();
    until("the disk hangs", || disk.asked.load(Ordering::Relaxed)).await;
    until("both know each other", || first.known() == 2 && second.known() == 2).await;
    second.end().await;
    // It is down two seconds later, which this task may sleep through.
    until("it is suspect", || matches!(stands(), Some(Standing::Suspect | Standing::Down))).await;
    until("it is down", || stands() == Some(Standing::Down)).await;
    *disk.let_go.0.lock().expect("not poisoned") = true;
    disk.let_go.1.notify_all();
    first.end().await;
}
