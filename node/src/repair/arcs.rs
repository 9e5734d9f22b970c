//! What a steward remembers of an arc, and its row in the ledger.
//!
//! Owns the row's bytes. The one idea: a row without a fingerprint, or none at all, has its arc planned
//! again.
//!
//! ```text
//! row                 value
//! "rf" ‖ arc u16 BE   3 u8 ‖ fingerprint 16 ‖ incomplete since u64 LE, unix seconds; 0: it is not
//!                     ‖ tally (see `report.rs`)
//! ```

use super::report::Tally;

const ROW_VERSION: u8 = 3;
pub(super) const ROW_PREFIX: &[u8] = b"rf";

pub(super) type Fingerprint = [u8; 16];

/// What the plan of an arc depended on, and what it found.
#[derive(Clone, Default)]
pub(super) struct Arcwise {
    pub(super) fingerprint: Fingerprint,
    /// Since when a chunk of it has a shard missing, in unix seconds.
    pub(super) incomplete_since: Option<u64>,
    /// When it is looked at again in any case.
    pub(super) again_at: Option<u64>,
    pub(super) tally: Tally,
}

/// Where an arc has its row.
pub(super) fn row_key(arc: u16) -> Vec<u8> {
    [ROW_PREFIX, &arc.to_be_bytes()].concat()
}

/// An arc that is to be looked at again has no fingerprint there: after a restart that is at once.
pub(super) fn row_value(arc: &Arcwise) -> Vec<u8> {
    let since = arc.incomplete_since.unwrap_or(0);
    let fingerprint = if arc.again_at.is_some() { Fingerprint::default() } else { arc.fingerprint };
    [&[ROW_VERSION][..], &fingerprint, &since.to_le_bytes(), &arc.tally.encode()].concat()
}

pub(super) fn read_row(key: &[u8], value: &[u8]) -> Option<(u16, Arcwise)> {
    let arc = u16::from_be_bytes(key.get(2..)?.try_into().ok()?);
    let [ROW_VERSION, rest @ ..] = value else { return None };
    let (fingerprint, since) = rest.split_first_chunk::<16>()?;
    let (since, tally) = since.split_first_chunk::<8>()?;
    let since = u64::from_le_bytes(*since);
    let incomplete_since = (since != 0).then_some(since);
    let tally = Tally::decode(tally).ok()?;
    Some((arc, Arcwise { fingerprint: *fingerprint, incomplete_since, again_at: None, tally }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_these_bytes_and_reads_back() {
        let arc =
            Arcwise { fingerprint: [7; 16], incomplete_since: Some(0x0102), ..Arcwise::default() };
        assert_eq!(row_key(0x0a0b), *b"rf\x0a\x0b");
        let value = row_value(&arc);
        let expected =
            [&[3][..], &[7; 16], &[2, 1, 0, 0, 0, 0, 0, 0], &Tally::default().encode()].concat();
        assert_eq!(value, expected);
        let (number, back) = read_row(&row_key(0x0a0b), &value).expect("a row");
        assert_eq!(
            (number, back.fingerprint, back.incomplete_since),
            (0x0a0b, [7; 16], Some(0x0102))
        );
        let again = row_value(&Arcwise { again_at: Some(9), ..arc });
        let (_, back) = read_row(&row_key(0x0a0b), &again).expect("a row");
        assert_eq!((back.fingerprint, back.again_at), ([0; 16], None), "looked at after a restart");
        assert!(read_row(b"rf\x0a", &value).is_none());
        assert!(read_row(b"rf\x0a\x0b", &value[..20]).is_none());
    }
}
