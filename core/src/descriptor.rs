//! The self-certifying record of a chunk.
//!
//! Owns its bytes, whose BLAKE3 hash is the ChunkId, and the check of a shard against it. Refuses
//! records with impossible sizes. The idea: who has a chunk's id can check every shard from anyone.
//!
//! ```text
//! "CPSD" ‖ 1 u8 ‖ k u8 ‖ n u8 ‖ shard_bytes u32 LE ‖ n × BLAKE3(shard) 32 B      11 + 32 n bytes
//! ```

use crate::{
    geometry::Geometry,
    ids::{ChunkId, ID_BYTES, ShardHash, ShardIndex},
    layout::Layout,
    limits::SHARDS_MAX,
    shard_tree::GroupHashes,
    wire::{Reader, WireError, Writer},
};

const MAGIC: &[u8; 4] = b"CPSD";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 11;

/// A descriptor's length, at most: one of 255 shards.
pub const DESCRIPTOR_BYTES_MAX: usize = HEADER_BYTES + SHARDS_MAX * ID_BYTES;

/// What a chunk is: its code, and the hash of each shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    geometry: Geometry,
    shard_bytes: u32,
    hashes: Vec<ShardHash>,
}

/// Bytes that are not the shard they are said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// The chunk has no shard of this index.
    #[error("chunk {chunk} has shards 0 to {}, not {index}", .total - 1)]
    Index {
        /// The chunk.
        chunk: ChunkId,
        /// The index asked for.
        index: ShardIndex,
        /// How many shards there are.
        total: usize,
    },
    /// The shard has another length.
    #[error("shard {index} of chunk {chunk} has {expected} bytes, got {got}")]
    Length {
        /// The chunk.
        chunk: ChunkId,
        /// The shard.
        index: ShardIndex,
        /// Bytes of each shard.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// The shard has another hash.
    #[error("shard {index} of chunk {chunk} hashes to {expected}, got {got}: the bytes are wrong")]
    Hash {
        /// The chunk.
        chunk: ChunkId,
        /// The shard.
        index: ShardIndex,
        /// The hash in the descriptor.
        expected: ShardHash,
        /// The hash of the bytes given.
        got: ShardHash,
    },
}

impl Descriptor {
    /// Describes a chunk by the hashes of its shards.
    ///
    /// # Errors
    /// When the hashes are not n, or no chunk of the geometry has [shards of that size](Layout::is_shard_size).
    pub fn new(
        geometry: Geometry,
        shard_bytes: usize,
        hashes: Vec<ShardHash>,
    ) -> Result<Self, WireError> {
        if hashes.len() != geometry.total() {
            return Err(WireError::Invalid("the number of shard hashes"));
        }
        if !Layout::is_shard_size(geometry, shard_bytes) {
            return Err(WireError::Invalid("the size of a shard"));
        }
        let shard_bytes =
            u32::try_from(shard_bytes).map_err(|_| WireError::Invalid("the size of a shard"))?;
        Ok(Self { geometry, shard_bytes, hashes })
    }

    /// (k, n) of the chunk.
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Bytes of each shard.
    pub const fn shard_bytes(&self) -> usize {
        self.shard_bytes as usize
    }

    /// The hash of a shard, if the chunk has one of this index.
    pub fn shard_hash(&self, index: ShardIndex) -> Option<&ShardHash> {
        self.hashes.get(index.as_usize())
    }

    /// The bytes that the chunk's id is the hash of.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(MAGIC).u8(VERSION).bytes(&self.geometry.to_bytes()).u32(self.shard_bytes);
        for hash in &self.hashes {
            writer.bytes(hash.as_bytes());
        }
        writer.finish()
    }

    /// Reads a descriptor. Whether it is the right one is known by its [`id`](Self::id).
    ///
    /// # Errors
    /// When the bytes are no descriptor.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.magic("a chunk descriptor", MAGIC, VERSION)?;
        let geometry = read_geometry(&mut reader)?;
        let shard_bytes = reader.u32()? as usize;
        let mut hashes = Vec::with_capacity(geometry.total());
        for _ in 0..geometry.total() {
            hashes.push(ShardHash::new(reader.array()?));
        }
        reader.end()?;
        Self::new(geometry, shard_bytes, hashes)
    }

    /// The chunk's id.
    pub fn id(&self) -> ChunkId {
        ChunkId::new(*blake3::hash(&self.encode()).as_bytes())
    }

    /// Checks that `bytes` are the shard `index`, and gives the hashes of its groups, which are a
    /// by-product.
    ///
    /// # Errors
    /// When they are not.
    pub fn check_shard(&self, index: ShardIndex, bytes: &[u8]) -> Result<GroupHashes, ShardError> {
        let expected = *self.shard_hash(index).ok_or_else(|| ShardError::Index {
            chunk: self.id(),
            index,
            total: self.geometry.total(),
        })?;
        if bytes.len() != self.shard_bytes() {
            let (expected, got) = (self.shard_bytes(), bytes.len());
            return Err(ShardError::Length { chunk: self.id(), index, expected, got });
        }
        let groups = GroupHashes::of(bytes);
        let got = groups.root(bytes.len());
        if got == expected {
            Ok(groups)
        } else {
            Err(ShardError::Hash { chunk: self.id(), index, expected, got })
        }
    }
}

/// Reads k and n, one byte each.
pub(crate) fn read_geometry(reader: &mut Reader<'_>) -> Result<Geometry, WireError> {
    Geometry::from_bytes(reader.array()?).map_err(|_| WireError::Invalid("the geometry"))
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        shard_tree,
        testing::{geometry, noise},
    };

    fn example() -> Descriptor {
        let hashes = [b"one", b"two", b"six"].map(|shard| shard_tree::hash(shard)).to_vec();
        Descriptor::new(geometry("2+1"), 3, hashes).expect("a descriptor")
    }

    #[test]
    fn golden_bytes_of_a_descriptor() {
        let descriptor = example();
        assert_eq!(
            HEXLOWER.encode(&descriptor.encode()),
            "4350534401020303000000d33fb48ab5adff269ae172b29a6913ff04f6f266207a7a8e976f2e\
             cd571d4492dc770fff53f50835f8cc957e01c0d5731d3c2ed544c375493a28c09be5e0976328\
             8faf11667dc8ab3eab4cf7b959e85bd02d3c7fc37d1d7740f758af360f3ff2"
        );
        assert_eq!(
            descriptor.id().to_string(),
            "ea909ad57f724303b383bfb5686ec0d9d00871ba5bbbcc945e1ae36d7242f204"
        );
        assert_eq!(Descriptor::decode(&descriptor.encode()), Ok(descriptor));
    }

    #[test]
    fn every_flipped_byte_is_another_chunk_or_none() {
        let descriptor = example();
        let mut bytes = descriptor.encode();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            if let Ok(other) = Descriptor::decode(&bytes) {
                assert_ne!(other.id(), descriptor.id(), "byte {at}");
            }
            bytes[at] ^= 1;
        }
        assert!(Descriptor::decode(&bytes[..bytes.len() - 1]).is_err());
        bytes.push(0);
        assert!(Descriptor::decode(&bytes).is_err());
    }

    #[test]
    fn only_the_right_bytes_are_a_shard() {
        let descriptor = example();
        assert!(descriptor.check_shard(ShardIndex(1), b"two").is_ok());
        let hash = descriptor.check_shard(ShardIndex(1), b"one").expect_err("another shard");
        assert!(matches!(hash, ShardError::Hash { index: ShardIndex(1), .. }));
        let length = descriptor.check_shard(ShardIndex(1), b"twos").expect_err("longer");
        assert!(matches!(length, ShardError::Length { expected: 3, got: 4, .. }));
        let index = descriptor.check_shard(ShardIndex(3), b"two").expect_err("no such shard");
        assert!(index.to_string().contains("has shards 0 to 2, not 3"), "{index}");
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let hashes = |count: usize| vec![shard_tree::hash(b""); count];
        let code = geometry("2+1");
        assert!(Descriptor::new(code, 3, hashes(2)).is_err());
        assert!(Descriptor::new(code, 0, hashes(3)).is_err());
        let wide = geometry("200+55");
        for (code, count) in [(code, 3), (wide, 255)] {
            let most = Layout::largest(code).shard_bytes();
            assert!(Descriptor::new(code, most, hashes(count)).is_ok(), "{code}");
            let more = Descriptor::new(code, most + 1, hashes(count));
            assert!(more.is_err(), "{code}: its shards together are more than a chunk");
        }
        let widest = Descriptor::new(wide, 1, hashes(255)).expect("a descriptor");
        assert_eq!(widest.encode().len(), DESCRIPTOR_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_descriptor_or_refused(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120),
            framed: bool,
            total in 0..5u8,
        ) {
            if framed {
                bytes = [&b"CPSD\x01"[..], &[total, total], &bytes[..]].concat();
            }
            if let Ok(descriptor) = Descriptor::decode(&bytes) {
                prop_assert_eq!(descriptor.encode(), bytes);
            }
        }

        #[test]
        fn a_descriptor_comes_back(data in 1..100usize, parity in 0..100usize, seed: u64) {
            let code = Geometry::new(data, parity).expect("a geometry");
            let bytes = noise(32 * code.total(), seed);
            let hashes: Vec<ShardHash> =
                bytes.as_chunks().0.iter().map(|hash| ShardHash::new(*hash)).collect();
            let descriptor = Descriptor::new(code, 1040, hashes).expect("a descriptor");
            prop_assert_eq!(Descriptor::decode(&descriptor.encode()), Ok(descriptor));
        }
    }
}
