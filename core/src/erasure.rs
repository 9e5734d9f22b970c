//! Reed-Solomon over GF(2^8): any k of n shards rebuild the others, by whole shards or by columns.
//!
//! Owns the code's matrix and the loop over it; the field's arithmetic and its SIMD kernels are
//! reed-solomon-erasure's. Refuses fewer than k shards. The idea: encoding, decoding and repair are
//! one loop, "outputs = matrix × inputs", over blocks of columns that stay in the first-level cache.
//!
//! The code is systematic, and its byte c of each shard depends on the bytes c of the others only:
//! a range of a missing shard is rebuilt from the same range of any k. The kernels are C built for
//! x86-64 with AVX2 (Haswell); an older CPU gets a portable one, chosen at run time, equal in
//! every byte and slower: 0.47 GB/s for 10+6, where SIMD does 6.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use reed_solomon_erasure::{Field as _, ReedSolomon, galois_8};

use crate::{geometry::Geometry, ids::ShardIndex};

/// Matrices kept for the next codec of the same geometry. A client uses two or three (its own, and
/// its replicas); when there are more than this, all are forgotten and made again.
const MATRICES_KEPT: usize = 64;

/// Bytes of output worked on at a time, for all outputs together. They stay in the first-level
/// cache, and the inputs are read in steps so short that the CPU reads ahead in all of them.
/// Measured for 10+6, medians: with shards that come from memory 4.2 GB/s, with 16 KiB 3.3; with
/// shards in the cache 5.7 to 6.0 and 5.2 to 6.0.
const BLOCK_BYTES: usize = 4 << 10;

/// Shortest block, in bytes: below, the calls cost more than the cache saves.
const BLOCK_BYTES_MIN: usize = 512;

/// Encoder and decoder of one geometry. Cheap to make and to clone; can be shared by threads.
#[derive(Clone, Debug)]
pub struct Codec {
    geometry: Geometry,
    parity_rows: Arc<Rows>,
    kernel: Kernel,
}

/// Why shards cannot be rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReconstructError {
    /// Fewer than k different shards.
    #[error("have {have} of the {need} shards needed to rebuild a chunk of {geometry}")]
    TooFew {
        /// Different shards given.
        have: usize,
        /// k.
        need: usize,
        /// The code.
        geometry: Geometry,
    },
    /// The chunk has no such shard.
    #[error("a chunk of {geometry} has no shard {index}")]
    Index {
        /// The index given or wanted.
        index: ShardIndex,
        /// The code.
        geometry: Geometry,
    },
    /// Shards, or columns of them, have different lengths.
    #[error("shard {index} has {got} bytes where others have {expected}")]
    Length {
        /// The shard that differs.
        index: ShardIndex,
        /// Bytes of the first.
        expected: usize,
        /// Bytes of this.
        got: usize,
    },
}

/// Which multiplication is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kernel {
    /// The C kernels of reed-solomon-erasure.
    Simd,
    /// A table, byte by byte.
    Portable,
}

impl Kernel {
    /// What this CPU can run. The C kernels are compiled for Haswell, so all of its extensions
    /// that a compiler may use are asked for, not AVX2 alone.
    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        let haswell = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("movbe");
        if haswell { Self::Simd } else { Self::Portable }
    }

    /// Elsewhere the crate builds for the target's base line (NEON on aarch64) or plain Rust.
    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Self::Simd
    }

    fn multiply(self, factor: u8, input: &[u8], out: &mut [u8]) {
        match self {
            Self::Simd => galois_8::Field::mul_slice(factor, input, out),
            Self::Portable => Portable::mul_slice(factor, input, out),
        }
    }

    fn multiply_add(self, factor: u8, input: &[u8], out: &mut [u8]) {
        match self {
            Self::Simd => galois_8::Field::mul_slice_add(factor, input, out),
            Self::Portable => Portable::mul_slice_add(factor, input, out),
        }
    }
}

/// The same field with the trait's own `mul_slice`: no C.
#[derive(Debug)]
struct Portable;

impl reed_solomon_erasure::Field for Portable {
    const ORDER: usize = 256;
    type Elem = u8;

    fn add(a: u8, b: u8) -> u8 {
        galois_8::add(a, b)
    }

    fn mul(a: u8, b: u8) -> u8 {
        galois_8::mul(a, b)
    }

    fn div(a: u8, b: u8) -> u8 {
        galois_8::div(a, b)
    }

    fn exp(elem: u8, n: usize) -> u8 {
        galois_8::exp(elem, n)
    }

    fn zero() -> u8 {
        0
    }

    fn one() -> u8 {
        1
    }

    #[expect(clippy::cast_possible_truncation, reason = "the caller checks that n is below ORDER")]
    fn nth_internal(n: usize) -> u8 {
        n as u8
    }
}

/// Rows of factors, one for each output; as many factors as there are inputs.
#[derive(Debug, PartialEq, Eq)]
struct Rows {
    inputs: usize,
    factors: Vec<u8>,
}

impl Rows {
    fn row(&self, output: usize) -> &[u8] {
        &self.factors[output * self.inputs..(output + 1) * self.inputs]
    }

    /// The parity rows of a geometry: what the crate's encoder makes of unit vectors.
    fn parity(geometry: Geometry) -> Self {
        let (inputs, outputs) = (geometry.data(), geometry.parity());
        let mut factors = vec![0; inputs * outputs];
        // The crate knows no code without parity.
        if let Ok(code) = ReedSolomon::<Portable>::new(inputs, outputs) {
            let unit = |i| (0..inputs).map(|j| u8::from(i == j)).collect::<Vec<u8>>();
            let units: Vec<Vec<u8>> = (0..inputs).map(unit).collect();
            let mut rows: Vec<&mut [u8]> = factors.chunks_mut(inputs).collect();
            code.encode_sep(&units, &mut rows).expect("the slices are as the code needs them");
        }
        Self { inputs, factors }
    }

    /// As [`parity`](Self::parity), made once for each geometry.
    fn parity_kept(geometry: Geometry) -> Arc<Self> {
        static KEPT: OnceLock<Mutex<BTreeMap<Geometry, Arc<Rows>>>> = OnceLock::new();
        let mut kept =
            KEPT.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rows) = kept.get(&geometry) {
            return Arc::clone(rows);
        }
        if kept.len() >= MATRICES_KEPT {
            kept.clear();
        }
        let rows = Arc::new(Self::parity(geometry));
        kept.insert(geometry, Arc::clone(&rows));
        rows
    }
}

impl Codec {
    /// The codec of a geometry, with the fastest kernel this CPU can run.
    pub fn new(geometry: Geometry) -> Self {
        Self::with_kernel(geometry, Kernel::detect())
    }

    pub(crate) fn with_kernel(geometry: Geometry, kernel: Kernel) -> Self {
        Self { geometry, parity_rows: Rows::parity_kept(geometry), kernel }
    }

    /// The geometry.
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Makes the n−k parity shards of k data shards; both lie back to back. What `parity` held
    /// before does not matter.
    ///
    /// # Panics
    /// When `data` is not k shards or `parity` is not n−k: the caller's mistake.
    pub fn encode(&self, data: &[u8], parity: &mut [u8], shard_bytes: usize) {
        assert_eq!(data.len(), self.geometry.data() * shard_bytes, "k data shards");
        assert_eq!(parity.len(), self.geometry.parity() * shard_bytes, "n-k parity shards");
        if parity.is_empty() {
            return;
        }
        let data: Vec<&[u8]> = data.chunks(shard_bytes).collect();
        let mut parity: Vec<&mut [u8]> = parity.chunks_mut(shard_bytes).collect();
        self.encode_columns(&data, &mut parity);
    }

    /// As [`encode`](Self::encode), of the same columns of each shard.
    pub(crate) fn encode_columns(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        self.multiply(&self.parity_rows, data, parity);
    }

    /// Rebuilds wanted shards, in the order asked for, from any k others; or the same range of
    /// columns of all.
    ///
    /// More than k shards may be given, also the same twice; the result is right only if all of
    /// them are, so check them against the descriptor before.
    ///
    /// # Errors
    /// When there are fewer than k different shards, their lengths differ, or there is no such
    /// index.
    pub fn reconstruct(
        &self,
        have: &[(ShardIndex, &[u8])],
        want: &[ShardIndex],
    ) -> Result<Vec<Vec<u8>>, ReconstructError> {
        let bytes = have.first().map_or(0, |(_, shard)| shard.len());
        let mut rebuilt: Vec<Vec<u8>> = want.iter().map(|_| vec![0; bytes]).collect();
        let mut outputs: Vec<(ShardIndex, &mut [u8])> =
            want.iter().copied().zip(rebuilt.iter_mut().map(Vec::as_mut_slice)).collect();
        self.reconstruct_into(have, &mut outputs)?;
        Ok(rebuilt)
    }

    /// As [`reconstruct`](Self::reconstruct), to places of the caller's.
    ///
    /// # Errors
    /// As [`reconstruct`](Self::reconstruct), and when a place has another length.
    pub fn reconstruct_into(
        &self,
        have: &[(ShardIndex, &[u8])],
        want: &mut [(ShardIndex, &mut [u8])],
    ) -> Result<(), ReconstructError> {
        let have = self.choose(have, want)?;
        let inputs: Vec<&[u8]> = have.iter().map(|(_, shard)| *shard).collect();
        let indices: Vec<ShardIndex> = have.iter().map(|(index, _)| *index).collect();
        let inverse = self.inverse(&indices);
        let (mut factors, mut outputs) = (Vec::new(), Vec::new());
        for (index, out) in want {
            if let Some(at) = indices.iter().position(|held| held == index) {
                out.copy_from_slice(inputs[at]);
            } else {
                factors.extend(self.row_from(&inverse, *index));
                outputs.push(&mut **out);
            }
        }
        self.multiply(&Rows { inputs: inputs.len(), factors }, &inputs, &mut outputs);
        Ok(())
    }

    /// Checks what is given and wanted, and picks k shards to rebuild from: those of the lowest
    /// indices, because data shards make the matrix the simplest.
    fn choose<'a>(
        &self,
        have: &[(ShardIndex, &'a [u8])],
        want: &[(ShardIndex, &mut [u8])],
    ) -> Result<Vec<(ShardIndex, &'a [u8])>, ReconstructError> {
        let geometry = self.geometry;
        let expected = have.first().map_or(0, |(_, shard)| shard.len());
        let given = have.iter().map(|(index, shard)| (*index, shard.len()));
        let wanted = want.iter().map(|(index, out)| (*index, out.len()));
        for (index, got) in given.chain(wanted) {
            if index.as_usize() >= geometry.total() {
                return Err(ReconstructError::Index { index, geometry });
            }
            if got != expected {
                return Err(ReconstructError::Length { index, expected, got });
            }
        }
        let distinct: BTreeMap<ShardIndex, &[u8]> = have.iter().copied().collect();
        let need = geometry.data();
        if distinct.len() < need {
            return Err(ReconstructError::TooFew { have: distinct.len(), need, geometry });
        }
        Ok(distinct.into_iter().take(need).collect())
    }

    /// The row that makes shard `index` of the k data shards.
    fn generator_row(&self, index: ShardIndex) -> Vec<u8> {
        let data = self.geometry.data();
        match index.as_usize().checked_sub(data) {
            Some(parity) => self.parity_rows.row(parity).to_vec(),
            None => (0..data).map(|j| u8::from(j == index.as_usize())).collect(),
        }
    }

    /// The row that makes shard `index` of the shards that `inverse` belongs to.
    fn row_from(&self, inverse: &Rows, index: ShardIndex) -> Vec<u8> {
        let mut row = vec![0; inverse.inputs];
        for (i, factor) in self.generator_row(index).into_iter().enumerate() {
            add_multiple(&mut row, factor, inverse.row(i));
        }
        row
    }

    /// The matrix that makes the k data shards of k given ones (Gauss-Jordan).
    fn inverse(&self, given: &[ShardIndex]) -> Rows {
        let size = given.len();
        // Each row: the generator's row of a given shard, and behind it the unit row.
        let mut work: Vec<Vec<u8>> = given.iter().map(|index| self.generator_row(*index)).collect();
        for (i, row) in work.iter_mut().enumerate() {
            row.extend((0..size).map(|j| u8::from(i == j)));
        }
        for column in 0..size {
            let pivot = (column..size).find(|row| work[*row][column] != 0);
            let pivot = pivot.expect("any k rows of a Reed-Solomon matrix are independent");
            work.swap(column, pivot);
            let scale = galois_8::div(1, work[column][column]);
            let pivot_row: Vec<u8> =
                work[column].iter().map(|factor| galois_8::mul(scale, *factor)).collect();
            for (i, row) in work.iter_mut().enumerate() {
                if i == column {
                    row.clone_from(&pivot_row);
                } else {
                    let factor = row[column];
                    add_multiple(row, factor, &pivot_row);
                }
            }
        }
        Rows { inputs: size, factors: work.iter().flat_map(|row| &row[size..]).copied().collect() }
    }

    /// outputs = rows × inputs, by blocks of columns.
    fn multiply(&self, rows: &Rows, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
        let bytes = inputs.first().map_or(0, |input| input.len());
        if outputs.is_empty() {
            return;
        }
        // Whole cache lines.
        let block = (BLOCK_BYTES / outputs.len() / 64 * 64).max(BLOCK_BYTES_MIN);
        for start in (0..bytes).step_by(block) {
            let columns = start..bytes.min(start + block);
            for (i, input) in inputs.iter().enumerate() {
                let input = &input[columns.clone()];
                for (o, output) in outputs.iter_mut().enumerate() {
                    let output = &mut output[columns.clone()];
                    match (i, rows.row(o)[i]) {
                        (0, factor) => self.kernel.multiply(factor, input, output),
                        (_, 0) => {}
                        (_, factor) => self.kernel.multiply_add(factor, input, output),
                    }
                }
            }
        }
    }
}

/// row += factor × other.
fn add_multiple(row: &mut [u8], factor: u8, other: &[u8]) {
    for (a, b) in row.iter_mut().zip(other) {
        *a = galois_8::add(*a, galois_8::mul(factor, *b));
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{geometries, geometry, noise};

    /// All n shards of made-up data.
    fn encoded(codec: &Codec, shard_bytes: usize) -> Vec<Vec<u8>> {
        let data = noise(codec.geometry().data() * shard_bytes, 1);
        // Old bytes in the place of the parity must not matter.
        let mut parity = noise(codec.geometry().parity() * shard_bytes, 2);
        codec.encode(&data, &mut parity, shard_bytes);
        data.chunks(shard_bytes).chain(parity.chunks(shard_bytes)).map(<[u8]>::to_vec).collect()
    }

    fn chosen(
        shards: &[Vec<u8>],
        indices: impl IntoIterator<Item = ShardIndex>,
    ) -> Vec<(ShardIndex, &[u8])> {
        indices.into_iter().map(|index| (index, &shards[index.as_usize()][..])).collect()
    }

    #[test]
    fn every_k_of_n_rebuild_all_shards() {
        for code in ["1+3", "2+1", "4+2", "5+3", "8+4"] {
            let code = geometry(code);
            let codec = Codec::new(code);
            let shards = encoded(&codec, 33);
            let all: Vec<ShardIndex> = code.indices().collect();
            for subset in 0u32..1 << code.total() {
                if subset.count_ones() as usize != code.data() {
                    continue;
                }
                let held = code.indices().filter(|index| subset >> index.0 & 1 == 1);
                let rebuilt = codec.reconstruct(&chosen(&shards, held), &all).expect("k shards");
                assert!(rebuilt == shards, "{code} from {subset:b}");
            }
        }
    }

    #[test]
    fn the_portable_kernel_makes_the_same_bytes() {
        for code in ["1+1", "4+2", "10+6", "29+51", "100+155"] {
            let code = geometry(code);
            let simd = Codec::new(code);
            let portable = Codec::with_kernel(code, Kernel::Portable);
            for shard_bytes in [1, 31, 32, 33, 4096, 5000] {
                let shards = encoded(&simd, shard_bytes);
                assert!(shards == encoded(&portable, shard_bytes), "{code} of {shard_bytes}");
                let have = chosen(&shards, code.indices().rev().take(code.data()));
                let want: Vec<ShardIndex> = code.indices().collect();
                assert_eq!(simd.reconstruct(&have, &want), portable.reconstruct(&have, &want));
            }
        }
    }

    #[test]
    fn parity_is_what_the_library_makes() {
        let codec = Codec::new(geometry("10+6"));
        let mut shards = encoded(&codec, 40_000);
        let ours = shards.clone();
        let library = galois_8::ReedSolomon::new(10, 6).expect("a known code");
        shards[10..].iter_mut().for_each(|parity| parity.fill(0));
        library.encode(&mut shards).expect("16 equal shards");
        assert!(shards == ours);
    }

    #[test]
    fn golden_bytes_of_parity() {
        let codec = Codec::new(geometry("3+2"));
        let mut parity = [0; 8];
        codec.encode(b"shardstowood", &mut parity, 4);
        assert_eq!(HEXLOWER.encode(&parity), "60747a79d3a2edee");
    }

    #[test]
    fn what_cannot_be_rebuilt_is_said() {
        let code = geometry("4+2");
        let codec = Codec::new(code);
        let shards = encoded(&codec, 100);
        let want = [ShardIndex(0)];
        let twice = [1, 2, 3, 3, 3].map(ShardIndex);
        let error = codec.reconstruct(&chosen(&shards, twice), &want).expect_err("three shards");
        assert_eq!(error.to_string(), "have 3 of the 4 shards needed to rebuild a chunk of 4+2");
        assert!(codec.reconstruct(&[], &want).is_err());
        let mut have = chosen(&shards, code.indices().skip(1));
        let unknown = codec.reconstruct(&have, &[ShardIndex(6)]);
        assert_eq!(unknown, Err(ReconstructError::Index { index: ShardIndex(6), geometry: code }));
        have[2].1 = &have[2].1[..99];
        let error = codec.reconstruct(&have, &want).expect_err("unequal");
        assert_eq!(
            error,
            ReconstructError::Length { index: ShardIndex(3), expected: 100, got: 99 }
        );
    }

    proptest! {
        #[test]
        fn any_k_rebuild_any_columns_of_any_shards(
            code in geometries(12, 8),
            shard_bytes in 1..9000usize,
            a: u16,
            b: u16,
            order in any::<[u8; 20]>(),
            wanted: u32,
        ) {
            let codec = Codec::new(code);
            let shards = encoded(&codec, shard_bytes);
            let (a, b) = (usize::from(a) % shard_bytes, usize::from(b) % shard_bytes);
            let columns = a.min(b)..a.max(b) + 1;
            // A random k of them: the first of a shuffled list.
            let mut indices: Vec<ShardIndex> = code.indices().collect();
            indices.sort_by_key(|index| order[index.as_usize()]);
            let mut have = chosen(&shards, indices.into_iter().take(code.data()));
            have.iter_mut().for_each(|(_, shard)| *shard = &shard[columns.clone()]);
            let want: Vec<ShardIndex> =
                code.indices().filter(|index| wanted >> index.0 & 1 == 1).collect();
            let rebuilt = codec.reconstruct(&have, &want).expect("k shards");
            for (index, rebuilt) in want.iter().zip(rebuilt) {
                prop_assert_eq!(&rebuilt, &shards[index.as_usize()][columns.clone()]);
            }
        }
    }
}
