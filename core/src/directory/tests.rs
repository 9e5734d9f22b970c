//! What a directory promises about records, order and digests.

use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::*;
use crate::{
    identity::NodeKey,
    limits::{ADDRESSES_MAX, ZONE_BYTES_MAX},
};

const NETWORK: NetworkId = NetworkId::new([0x11; 32]);

fn key(number: u8) -> NodeKey {
    NodeKey::from_seed([number; 32])
}

fn record(key: &NodeKey, seq: u64) -> NodeRecord {
    NodeRecord {
        network: NETWORK,
        node: key.id(),
        seq,
        addresses: vec!["192.0.2.1:7400".parse().expect("an address")],
        grpc: vec!["[2001:db8::1]:7401".parse().expect("an address")],
        relays: vec![NodeId::new([0x44; 32])],
        zone: "attic".into(),
        capacity_bytes: 10 << 30,
        state: NodeState::Active,
        version: "0.1.0".into(),
    }
}

fn signed(number: u8, seq: u64) -> SignedRecord {
    SignedRecord::sign(record(&key(number), seq), &key(number)).expect("a record")
}

#[test]
fn the_bytes_of_a_record() {
    let expected = [
        "4350534e",
        "01",
        &"11".repeat(32),
        &key(1).id().to_string(),
        "0500000000000000",
        "01",
        "04c0000201e81c",
        "01",
        "0620010db8000000000000000000000001e91c",
        "01",
        &"44".repeat(32),
        "056174746963",
        "0000008002000000",
        "01",
        "05302e312e30",
    ];
    let signed = signed(1, 5);
    assert_eq!(HEXLOWER.encode(signed.record_bytes()), expected.concat());
    assert_eq!(
        HEXLOWER.encode(signed.signature()),
        "7a527c83d4c0f8a9642add1965351d2fd04b72e97301abca06516a01144984461a6dfa937ac7a06a04d666d1900ea023cccf284823691ac9dbb7a0e5189fe504"
    );
}

#[test]
fn a_signed_record_comes_back() {
    let signed = signed(1, 5);
    let back = SignedRecord::verify(signed.record_bytes(), signed.signature(), NETWORK);
    assert_eq!(back, Ok(signed));
}

#[test]
fn a_record_is_signed_by_its_node_for_its_network_within_the_limits() {
    let foreign = SignedRecord::sign(record(&key(1), 1), &key(2));
    assert!(matches!(foreign, Err(RecordError::OtherKey { .. })));

    let signed = signed(1, 1);
    let (bytes, signature) = (signed.record_bytes(), signed.signature());
    let error = SignedRecord::verify(bytes, signature, NetworkId::new([9; 32]))
        .expect_err("another network");
    assert!(error.to_string().ends_with("use a join token of this one"), "{error}");

    for wrong in [
        NodeRecord { zone: "z".repeat(ZONE_BYTES_MAX + 1), ..record(&key(1), 1) },
        NodeRecord { zone: "two\nlines".into(), ..record(&key(1), 1) },
        NodeRecord { version: "v".repeat(VERSION_BYTES_MAX + 1), ..record(&key(1), 1) },
        NodeRecord { relays: vec![key(1).id(); ADDRESSES_MAX + 1], ..record(&key(1), 1) },
    ] {
        let refused = SignedRecord::sign(wrong, &key(1));
        assert!(matches!(refused, Err(RecordError::Format(_))), "{refused:?}");
    }
}

#[test]
fn the_last_writer_wins_by_seq() {
    let mut directory = Directory::new(NETWORK);
    assert_eq!(directory.insert(signed(1, 5)), Inserted::New);
    assert_eq!(directory.insert(signed(1, 4)), Inserted::Older);
    assert_eq!(directory.insert(signed(1, 5)), Inserted::Known);
    assert_eq!(directory.insert(signed(1, 6)), Inserted::Newer);
    assert_eq!(directory.len(), 1);
    assert_eq!(directory.get(&key(1).id()).map(|held| held.record().seq), Some(6));
}

#[test]
fn only_genuine_records_are_admitted() {
    let mut directory = Directory::new(NETWORK);
    let five = signed(1, 5);
    assert_eq!(
        directory.admit(five.record_bytes(), five.signature()),
        Ok((five.node(), Inserted::New))
    );
    // Known and older records need no check of the signature: nothing is stored.
    assert_eq!(directory.admit(five.record_bytes(), &[0; 64]), Ok((five.node(), Inserted::Known)));
    let four = record(&key(1), 4).encode();
    assert_eq!(directory.admit(&four, &[0; 64]), Ok((five.node(), Inserted::Older)));
    let six = record(&key(1), 6).encode();
    assert!(matches!(directory.admit(&six, &[0; 64]), Err(RecordError::Signature(_))));
    assert!(matches!(directory.admit(&six, &[0; 63]), Err(RecordError::Signature(_))));
    let older_of_another_network =
        NodeRecord { network: NetworkId::new([9; 32]), ..record(&key(1), 1) }.encode();
    assert!(matches!(
        directory.admit(&older_of_another_network, &[0; 64]),
        Err(RecordError::OtherNetwork { .. })
    ));
    assert_eq!(directory.get(&five.node()), Some(&five));
}

#[test]
fn the_directory_can_be_read_in_pages() {
    let mut directory = Directory::new(NETWORK);
    for number in 1..=10 {
        directory.insert(signed(number, 1));
    }
    let (mut seen, mut last) = (Vec::new(), None);
    loop {
        let page: Vec<_> = directory.after(last.as_ref()).take(3).collect();
        let Some(end) = page.last() else { break };
        last = Some(end.node());
        seen.extend(page);
    }
    assert!(seen.into_iter().eq(directory.iter()));
}

#[test]
fn the_ring_has_the_active_nodes_and_its_revision_moves_only_with_it() {
    let mut directory = Directory::new(NETWORK);
    directory.insert(signed(1, 1));
    directory.insert(signed(2, 1));
    assert_eq!(directory.ring().len(), 2);

    let revision = directory.ring_revision();
    directory.insert(signed(1, 2));
    assert_eq!(directory.ring_revision(), revision, "only seq changed");

    let leaving = NodeRecord { state: NodeState::Leaving, ..record(&key(2), 2) };
    directory.insert(SignedRecord::sign(leaving, &key(2)).expect("a record"));
    assert!(directory.ring_revision() > revision);
    assert_eq!(directory.ring().walk(0).collect::<Vec<_>>(), [key(1).id()]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]

    #[test]
    fn directories_that_heard_the_same_are_the_same_in_any_order(
        (heard, shuffled) in prop::collection::vec((1u8..6, 0u64..4, 0u64..2), 0..24)
            .prop_flat_map(|heard| (Just(heard.clone()), Just(heard).prop_shuffle())),
    ) {
        let gather = |heard: &[(u8, u64, u64)]| {
            let mut directory = Directory::new(NETWORK);
            for &(number, seq, capacity) in heard {
                // Also two different records with one seq, which no honest node signs.
                let record = NodeRecord { capacity_bytes: capacity, ..record(&key(number), seq) };
                directory.insert(SignedRecord::sign(record, &key(number)).expect("a record"));
            }
            directory
        };
        let (one, other) = (gather(&heard), gather(&shuffled));
        prop_assert!(one.iter().eq(other.iter()));
        prop_assert_eq!(one.digests(), other.digests());
        for bucket in 0..=255 {
            let empty = one.bucket(bucket).next().is_none();
            prop_assert_eq!(one.digests()[usize::from(bucket)] == 0, empty);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        tail in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(4), any::<u8>()], 0..140),
    ) {
        let bytes = [&record(&key(1), 5).encode()[..77], &tail].concat();
        if let Ok(record) = NodeRecord::decode(&bytes) {
            prop_assert_eq!(record.encode(), bytes);
        }
    }

    #[test]
    fn an_altered_record_is_refused(at: prop::sample::Index, flip in 1u8..) {
        let signed = signed(1, 5);
        let mut bytes = signed.record_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(SignedRecord::verify(&bytes, signed.signature(), NETWORK).is_err());
    }
}
