//! What a node remembers of its network over a restart: the signed records of some peers.
//!
//! Owns the file `peers` and its bytes. Refuses a damaged file as a whole, and records that their
//! nodes did not sign; it is only a memory, so the node then starts as if it had none. The file is
//! replaced, never changed.
//!
//! ```text
//! "CPSM" ‖ 2 u8 ‖ network 32 B ‖ count varint ‖ count × (record prefixed ‖ signature 64 B)
//!        ‖ how many of these, the first ones, this node heard itself varint
//!        ‖ count varint ‖ count × (observation prefixed ‖ signature 64 B)
//!        ‖ first 16 B of BLAKE3 of all before
//! ```
//!
//! Version 1 does not say who was heard; it is read as if that was nobody.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::PathBuf,
};

use copse_core::{
    directory::SignedRecord,
    eviction::{OBSERVATION_BYTES, OBSERVERS_MAX, SignedObservation},
    identity::SIGNATURE_BYTES,
    ids::{NetworkId, NodeId},
    wire::{Reader, WireError, Writer},
};

/// Peers that are remembered, at most: one that answers is enough, and the rest of the directory
/// comes from it.
pub const REMEMBERED_MAX: usize = 1024;

const MAGIC: &[u8; 4] = b"CPSM";
const VERSION: u8 = 2;
const CHECK_BYTES: usize = 16;

/// A record with its longest lists, rounded up.
const RECORD_BYTES_MAX: usize = 4 << 10;

/// Observations that are remembered, at most: of 512 silent nodes.
pub const OBSERVATIONS_MAX: usize = 512 * OBSERVERS_MAX;

/// The file, in bytes, at most.
const FILE_BYTES_MAX: usize = REMEMBERED_MAX * (RECORD_BYTES_MAX + SIGNATURE_BYTES + 4)
    + OBSERVATIONS_MAX * (OBSERVATION_BYTES + SIGNATURE_BYTES + 4)
    + 128;

/// What is remembered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Records of nodes.
    pub records: Vec<SignedRecord>,
    /// Those of them that this node heard itself: by them it measures whether it is cut off.
    pub heard: BTreeSet<NodeId>,
    /// What was signed about silent ones: without it, a network that was restarted as a whole would
    /// have its dead back on the ring.
    pub observations: Vec<SignedObservation>,
}

/// Keeps some bytes over a restart. The calls block.
pub trait Memory: Send + Sync + 'static {
    /// What was last stored; none when nothing was.
    fn load(&self) -> io::Result<Option<Vec<u8>>>;

    /// Stores, as a whole or not at all.
    fn store(&self, bytes: &[u8]) -> io::Result<()>;
}

/// A memory in a file.
#[derive(Debug)]
pub struct FileMemory(PathBuf);

impl FileMemory {
    /// In the file at `path`; its directory must exist.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }
}

impl Memory for FileMemory {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(&self.0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        // One byte more, so that a longer file does not pass for a whole one.
        file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn store(&self, bytes: &[u8]) -> io::Result<()> {
        let new = self.0.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        // Otherwise a power cut may leave the new name on empty bytes.
        file.sync_data()?;
        fs::rename(&new, &self.0)
    }
}

/// Why remembered bytes are of no use.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// They are not as they were written.
    #[error("the file of remembered peers is damaged")]
    Damaged,
    /// They are not what they should be.
    #[error("the file of remembered peers cannot be read: {0}")]
    Format(#[from] WireError),
    /// They are another network's.
    #[error("the file of remembered peers is of another network: expected {expected}, got {got}")]
    OtherNetwork {
        /// Ours.
        expected: NetworkId,
        /// The file's.
        got: NetworkId,
    },
}

/// The bytes of [`REMEMBERED_MAX`] records, those that were heard first.
pub fn encode<'a>(
    network: NetworkId,
    heard: &[&'a SignedRecord],
    others: &[&'a SignedRecord],
    observations: &[SignedObservation],
) -> Vec<u8> {
    let records: Vec<_> = heard.iter().chain(others).take(REMEMBERED_MAX).collect();
    let mut writer = Writer::new();
    writer.bytes(MAGIC).u8(VERSION).bytes(network.as_bytes()).varint(records.len() as u64);
    for record in records {
        writer.prefixed(record.record_bytes()).bytes(record.signature());
    }
    writer.varint(heard.len().min(REMEMBERED_MAX) as u64);
    let observations = &observations[..observations.len().min(OBSERVATIONS_MAX)];
    writer.varint(observations.len() as u64);
    for observation in observations {
        writer.prefixed(&observation.observation_bytes()).bytes(observation.signature());
    }
    let mut bytes = writer.finish();
    let check = blake3::hash(&bytes);
    bytes.extend_from_slice(&check.as_bytes()[..CHECK_BYTES]);
    bytes
}

/// The records and observations in remembered bytes whose signatures hold.
///
/// # Errors
/// When the bytes are damaged or of another network.
pub fn decode(bytes: &[u8], network: NetworkId) -> Result<Remembered, MemoryError> {
    let content = bytes.len().checked_sub(CHECK_BYTES).ok_or(MemoryError::Damaged)?;
    let (content, check) = bytes.split_at(content);
    if &blake3::hash(content).as_bytes()[..CHECK_BYTES] != check {
        return Err(MemoryError::Damaged);
    }
    let mut reader = Reader::new(content);
    let version = reader.magic("a file of remembered peers", MAGIC, VERSION)?;
    let got = NetworkId::new(reader.array()?);
    if got != network {
        return Err(MemoryError::OtherNetwork { expected: network, got });
    }
    let count = reader.bounded("remembered peers", REMEMBERED_MAX as u64)?;
    let mut all = Vec::new();
    for _ in 0..count {
        let record = reader.prefixed("a record", RECORD_BYTES_MAX)?;
        let signature = reader.array::<SIGNATURE_BYTES>()?;
        all.push(SignedRecord::verify(record, &signature, network));
    }
    let heard = match version {
        1 => 0,
        _ => usize::try_from(reader.bounded("remembered peers that were heard", count)?)
            .unwrap_or(usize::MAX),
    };
    let heard = all.iter().take(heard).flatten().map(SignedRecord::node).collect();
    let records = all.into_iter().flatten().collect();
    let count = reader.bounded("remembered observations", OBSERVATIONS_MAX as u64)?;
    let mut observations = Vec::new();
    for _ in 0..count {
        let observation = reader.prefixed("an observation", OBSERVATION_BYTES)?;
        let signature = reader.array::<SIGNATURE_BYTES>()?;
        observations.extend(SignedObservation::verify(observation, &signature, network));
    }
    reader.end()?;
    Ok(Remembered { records, heard, observations })
}

#[cfg(test)]
mod tests {
    use copse_core::{
        directory::{NodeRecord, NodeState},
        eviction::Observation,
        identity::NodeKey,
        ids::NodeId,
    };
    use data_encoding::HEXLOWER;

    use super::*;

    const NETWORK: NetworkId = NetworkId::new([2; 32]);

    fn record(number: u8) -> SignedRecord {
        let key = NodeKey::from_seed([number; 32]);
        let record = NodeRecord {
            network: NETWORK,
            node: key.id(),
            seq: 7,
            addresses: vec![([127, 0, 0, 1], 7400).into()],
            grpc: Vec::new(),
            relays: Vec::new(),
            zone: String::new(),
            capacity_bytes: 1 << 30,
            state: NodeState::Active,
            version: "0.1.0".to_owned(),
        };
        SignedRecord::sign(record, &key).expect("a valid record")
    }

    fn observation() -> SignedObservation {
        let key = NodeKey::from_seed([3; 32]);
        let observation = Observation {
            network: NETWORK,
            observer: key.id(),
            subject: NodeKey::from_seed([4; 32]).id(),
            subject_seq: 5,
            silent_seconds: 6,
            observed_at: 7,
        };
        SignedObservation::sign(observation, &key).expect("valid")
    }

    /// A record as it lies in the file.
    fn of(number: u8) -> String {
        let record = record(number);
        let (bytes, signature) = (record.record_bytes(), record.signature());
        format!("{:02x}{}{}", bytes.len(), HEXLOWER.encode(bytes), HEXLOWER.encode(signature))
    }

    #[test]
    fn the_bytes_do_not_change() {
        let bytes = encode(NETWORK, &[&record(1)], &[&record(2)], &[]);
        let expected = ["4350534d", "02", &"02".repeat(32), "02", &of(1), &of(2), "01", "00"];
        let content = &bytes[..bytes.len() - CHECK_BYTES];
        assert_eq!(HEXLOWER.encode(content), expected.concat());
    }

    #[test]
    fn a_file_of_version_1_is_read() {
        let content = ["4350534d", "01", &"02".repeat(32), "02", &of(1), &of(2), "00"].concat();
        let mut bytes = HEXLOWER.decode(content.as_bytes()).expect("hex");
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..CHECK_BYTES]);
        let back = decode(&bytes, NETWORK).expect("readable");
        let expected = Remembered { records: vec![record(1), record(2)], ..Remembered::default() };
        assert_eq!(back, expected);
    }

    #[test]
    fn records_come_back_and_every_flipped_bit_is_noticed() {
        let all = [record(1), record(2), record(3)];
        let bytes = encode(NETWORK, &[&all[0], &all[1]], &[&all[2]], &[observation()]);
        let back = decode(&bytes, NETWORK).expect("as written");
        let nodes = |records: &[SignedRecord]| -> Vec<NodeId> {
            records.iter().map(SignedRecord::node).collect()
        };
        assert_eq!(nodes(&back.records), nodes(&all));
        assert_eq!(back.heard, nodes(&all[..2]).into_iter().collect());
        assert_eq!(back.observations, [observation()]);
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 0x10;
            decode(&bent, NETWORK).expect_err("a flipped bit");
        }
        for end in 0..bytes.len() {
            decode(&bytes[..end], NETWORK).expect_err("torn");
        }
        let error = decode(&bytes, NetworkId::new([9; 32])).expect_err("another network");
        assert!(matches!(error, MemoryError::OtherNetwork { .. }), "{error}");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let memory = FileMemory::new(dir.path().join("peers"));
        assert_eq!(memory.load().expect("readable"), None);
        memory.store(b"one").expect("stored");
        memory.store(b"two").expect("stored again");
        assert_eq!(memory.load().expect("readable").as_deref(), Some(&b"two"[..]));
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1);
    }
}
