//! The bytes of nodes, pinned; and what bytes that no builder wrote can do.

use proptest::prelude::*;

use crate::{
    extent::Extent,
    ids::ChunkId,
    seal::ContentKey,
    tree::{
        entry::{Attributes, Content, Counts, Entry, Kind, Meta, Name, Piece, Timestamp},
        node::{
            Branch, ContentNode, DirectoryNode, HEIGHT_MAX, Span, decode_content, decode_directory,
            decode_root, encode_inner, encode_leaf, encode_pieces, encode_root, encode_spans,
            write_same_pack,
        },
        pack::{PackWriter, Place},
        range::FileRange,
        reader::{Listing, Lookup, Reading},
    },
    wire::Writer,
};

fn extent(seed: u8) -> Extent {
    Extent {
        chunk: ChunkId::new([seed; 32]),
        geometry: "4+2".parse().expect("a geometry"),
        shard_bytes: 1_048_832,
        offset: 1000,
        plaintext_bytes: 500,
        frame_bytes: 1024,
        key: ContentKey::new([seed + 1; 32]),
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a name")
}

fn entry<R>(text: &str, kind: Kind<R>) -> Entry<R> {
    let time = Timestamp::new(1_700_000_000, 5).expect("a time");
    Entry { name: name(text), meta: Meta::new(0o644, time), kind }
}

/// One entry of each kind, some in a pack that is open.
fn entries() -> Vec<Entry<Place>> {
    let mut pack = PackWriter::new(super::geometry(), super::secret());
    let item = pack.item(b"packed").expect("an item");
    let mut with_attributes = entry("b", Kind::Symlink { target: b"../a".to_vec() });
    with_attributes.meta.attributes.set(9, b"x".to_vec());
    let counts = Counts { entries: 2, all: 3, bytes: 70_000 };
    vec![
        entry("a", Kind::File { size: 2, content: Content::Inline(b"hi".to_vec()) }),
        with_attributes,
        entry(
            "c",
            Kind::File {
                size: 506 + 4096,
                content: Content::Pieces(vec![
                    Piece::Data(Place::Extent(extent(1))),
                    Piece::Hole(4096),
                    Piece::Data(item.clone()),
                ]),
            },
        ),
        entry("d", Kind::Directory { root: Some(item), counts }),
        entry("e", Kind::Directory { root: None, counts: Counts::default() }),
        entry("f", Kind::File { size: 1 << 40, content: Content::Tree(Place::Extent(extent(3))) }),
    ]
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Where the nodes of these tests are said to be.
const AT: u32 = 1000;

#[test]
fn the_bytes_of_a_leaf() {
    let bytes = encode_leaf(&entries(), AT);
    assert_eq!(
        hex(&bytes),
        concat!(
            "4350535401010006016101a40380c49fd50c050200686900016203a40380c49fd50c05042e2e2f61",
            "03090178016301a40380c49fd50c05fa230103020101010101010101010101010101010101010101",
            "0101010101010101010101010406808240e807f4030a020202020202020202020202020202020202",
            "020202020202020202020202020200802001e807060ad9afec6faf4d1fa85a405bb86f958d33fa3b",
            "18f18b1c0954646cff19dd29b61d00016402a40380c49fd50c050203f0a20401e807060ad9afec6f",
            "af4d1fa85a405bb86f958d33fa3b18f18b1c0954646cff19dd29b61d00016502a40380c49fd50c05",
            "00000000016601a40380c49fd50c0580808080802002020303030303030303030303030303030303",
            "0303030303030303030303030303030406808240e807f4030a040404040404040404040404040404",
            "040404040404040404040404040404040400"
        )
    );
    let DirectoryNode::Leaf(read) = decode_directory(&bytes, &extent(8)).expect("decodes") else {
        panic!("a leaf was read as an inner node");
    };
    assert_eq!(read.len(), 6);
    let Kind::Directory { root: Some(root), counts } = &read[3].kind else {
        panic!("a directory was read as {:?}", read[3]);
    };
    // Its pack is the one of the node, and it lies at the pack's start.
    assert_eq!((root.chunk, root.offset, root.plaintext_bytes), (extent(8).chunk, 0, 6));
    assert_eq!(counts.bytes, 70_000);
    assert_eq!(read[1].meta.attributes.get(9), Some(&b"x"[..]));
}

#[test]
fn the_bytes_of_inner_nodes_of_pieces_and_of_a_root() {
    let branches = [
        Branch { first: name("a"), node: extent(1) },
        Branch { first: name("m"), node: extent(2) },
    ];
    let bytes = encode_inner(1, &branches, AT);
    assert_eq!(
        hex(&bytes),
        concat!(
            "43505354010101020161020101010101010101010101010101010101010101010101010101010101",
            "0101010406808240e807f4030a020202020202020202020202020202020202020202020202020202",
            "0202020202016d020202020202020202020202020202020202020202020202020202020202020202",
            "0406808240e807f4030a030303030303030303030303030303030303030303030303030303030303",
            "0303"
        )
    );
    let node = DirectoryNode::Inner { height: 1, branches: branches.to_vec() };
    assert_eq!(decode_directory(&bytes, &extent(8)), Ok(node));

    let pieces = [Piece::Hole(300), Piece::Data(extent(1))];
    let bytes = encode_pieces(&pieces, AT);
    assert_eq!(
        hex(&bytes),
        concat!(
            "435053540102000200ac020201010101010101010101010101010101010101010101010101010101",
            "010101010406808240e807f4030a0202020202020202020202020202020202020202020202020202",
            "020202020202"
        )
    );
    assert_eq!(decode_content(&bytes, &extent(8)), Ok(ContentNode::Leaf(pieces.to_vec())));

    let spans = [Span { bytes: 800, node: extent(1) }];
    let bytes = encode_spans(1, &spans, AT);
    assert_eq!(
        hex(&bytes),
        concat!(
            "4350535401020101a006020101010101010101010101010101010101010101010101010101010101",
            "0101010406808240e807f4030a020202020202020202020202020202020202020202020202020202",
            "0202020202"
        )
    );
    let node = ContentNode::Inner { height: 1, spans: spans.to_vec() };
    assert_eq!(decode_content(&bytes, &extent(8)), Ok(node));

    let counts = Counts { entries: 2, all: 3, bytes: 70_000 };
    let mut root = entry("x", Kind::Directory { root: Some(extent(1)), counts });
    root.name = Name::UNNAMED;
    let bytes = encode_root(&root, AT);
    assert_eq!(
        hex(&bytes),
        concat!(
            "43505352010002a40380c49fd50c050203f0a2040201010101010101010101010101010101010101",
            "010101010101010101010101010406808240e807f4030a0202020202020202020202020202020202",
            "02020202020202020202020202020200"
        )
    );
    assert_eq!(decode_root(&bytes, &extent(8)), Ok(root));
}

#[test]
fn a_node_that_no_builder_wrote_is_refused() {
    let from = extent(8);
    let refused = |bytes: Vec<u8>, what: &str| {
        let error = decode_directory(&bytes, &from).expect_err(what);
        assert!(error.to_string().starts_with("the tree was written wrongly"), "{error}");
    };
    let file =
        |text| entry::<Extent>(text, Kind::File { size: 0, content: Content::Inline(vec![]) });
    refused(encode_leaf(&[file("b"), file("a")], 0), "names out of order");
    refused(encode_leaf(&[file("a"), file("a")], 0), "a name twice");
    refused(encode_leaf::<Extent>(&[], 0), "an empty node");
    refused(vec![0; 100_000], "a node over the limit");
    refused(encode_pieces(&[Piece::<Extent>::Hole(1)], 0), "pieces in a directory");
    let branch = Branch { first: name("a"), node: extent(1) };
    refused(encode_inner(HEIGHT_MAX + 1, &[branch], 0), "a node too high");
    let large = Extent { plaintext_bytes: 70_000, frame_bytes: 65_536, ..extent(1) };
    refused(encode_inner(1, &[Branch { first: name("a"), node: large }], 0), "a large child");
    let sum = Content::Pieces(vec![Piece::Data(extent(1)), Piece::Hole(u64::MAX)]);
    refused(encode_leaf(&[entry("a", Kind::File { size: 499, content: sum })], 0), "a wrong sum");
    let counts = Counts { entries: 2, all: 1, bytes: 0 };
    let counted = Kind::Directory { root: Some(extent(1)), counts };
    refused(encode_leaf(&[entry("a", counted)], 0), "counts that cannot be");
    let mut unnamed = file("a");
    unnamed.name = Name::UNNAMED;
    refused(encode_leaf(&[unnamed], 0), "an entry without a name");
    // An item that reaches into the node that names it, or lies before its pack.
    for distance in [0, 500, 1001] {
        let mut out = Writer::new();
        out.bytes(b"CPST\x01\x01\x01\x01\x01a");
        write_same_pack(&mut out, distance, 500, 1024, &ContentKey::new([1; 32]));
        refused(out.finish(), "an item that is not before its node");
    }
}

#[test]
fn a_directory_that_holds_more_or_less_than_it_says_is_an_error() {
    let file = entry::<Extent>("a", Kind::File { size: 0, content: Content::Inline(vec![]) });
    let leaf = encode_leaf(&[file], 0);
    for (entries, all, right) in [(1, 1, true), (2, 2, false), (1, 2, false)] {
        let counts = Counts { entries, all, bytes: 0 };
        let mut listing =
            Listing::of(&entry("d", Kind::Directory { root: Some(extent(1)), counts }))
                .expect("a directory");
        listing.feed(&leaf).expect("a leaf");
        assert!(matches!(listing.step(), Ok(Reading::Ready(_))));
        assert_eq!(listing.step().is_ok(), right, "{counts:?}");
    }
    // A directory of two entries in all that holds one of two: it may not hold itself.
    let counts = Counts { entries: 1, all: 2, bytes: 0 };
    let itself = entry("d", Kind::Directory { root: Some(extent(1)), counts });
    let leaf = encode_leaf(core::slice::from_ref(&itself), 0);
    let mut listing = Listing::of(&itself).expect("a directory");
    assert!(listing.feed(&leaf).is_err(), "a directory held itself");
}

/// Nodes of a hostile world, where any extent may lead to any of them.
fn hostile_nodes() -> Vec<Vec<u8>> {
    let file = |text| entry(text, Kind::File { size: 3, content: Content::Tree(extent(1)) });
    let branch = |text| Branch { first: name(text), node: extent(1) };
    let mut nodes = vec![
        encode_leaf(&[file("a"), file("b")], 0),
        encode_leaf(&[file("b")], 0),
        encode_pieces(&[Piece::<Extent>::Hole(1), Piece::Hole(2)], 0),
        encode_pieces(&[Piece::<Extent>::Hole(1)], 0),
    ];
    for height in 1..=HEIGHT_MAX {
        nodes.push(encode_inner(height, &[branch("a"), branch("b")], 0));
        nodes.push(encode_inner(height, &[branch("b")], 0));
        nodes.push(encode_spans(height, &[1, 2].map(|bytes| Span { bytes, node: extent(1) }), 0));
        nodes.push(encode_spans(height, &[Span { bytes: 1, node: extent(1) }], 0));
    }
    nodes
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        family in 0u8..4,
    ) {
        for start in [&b""[..], &[b'C', b'P', b'S', b'T', 1, family, 0], b"CPST\x01\x01\x01", b"CPSR\x01"] {
            bytes.splice(..0, start.iter().copied());
            let _ = decode_directory(&bytes, &extent(8));
            let _ = decode_content(&bytes, &extent(8));
            let _ = decode_root(&bytes, &extent(8));
        }
    }

    #[test]
    fn a_changed_leaf_is_refused_or_means_what_it_says(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encode_leaf(&entries(), AT);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(DirectoryNode::Leaf(read)) = decode_directory(&bytes, &extent(8)) {
            let again = encode_leaf(&read, AT);
            prop_assert_eq!(decode_directory(&again, &extent(8)), Ok(DirectoryNode::Leaf(read)));
        }
    }

    #[test]
    fn any_entry_comes_back(
        raw in prop::collection::vec(any::<u8>(), 1..255),
        mode in 0u32..=0o7777,
        seconds: i64,
        nanoseconds in 0u32..1_000_000_000,
        content in prop::collection::vec(any::<u8>(), 0..4096),
        attributes in prop::collection::btree_map(any::<u64>(), prop::collection::vec(any::<u8>(), 0..20), 0..5),
    ) {
        let Ok(name) = Name::new(&raw) else { return Ok(()) };
        let modified = Timestamp::new(seconds, nanoseconds).expect("a time");
        let mut meta = Meta { mode, modified, attributes: Attributes::default() };
        attributes.into_iter().for_each(|(number, value)| meta.attributes.set(number, value));
        let kind = Kind::File { size: content.len() as u64, content: Content::Inline(content) };
        let entry = Entry::<Extent> { name, meta, kind };
        let bytes = encode_leaf(core::slice::from_ref(&entry), 0);
        prop_assert_eq!(decode_directory(&bytes, &extent(8)), Ok(DirectoryNode::Leaf(vec![entry.clone()])));
        prop_assert_eq!(decode_root(&encode_root(&entry, 0), &extent(8)), Ok(entry));
    }

    #[test]
    fn every_machine_ends_in_a_hostile_world(
        choices in prop::collection::vec(any::<prop::sample::Index>(), 1..60),
        entries in 1u64..5,
    ) {
        let nodes = hostile_nodes();
        // A machine may ask again and again: the same choices come around.
        let mut answers = choices.iter().map(|choice| choice.get(&nodes)).cycle();
        let steps_max = 10 * (usize::from(HEIGHT_MAX) + 2) * 5;
        let counts = Counts { entries, all: entries, bytes: 3 * entries };
        let directory = entry("d", Kind::Directory { root: Some(extent(1)), counts });

        let mut listing = Listing::of(&directory).expect("a directory");
        let mut steps = 0;
        while let Ok(reading) = listing.step() {
            match reading {
                Reading::Fetch(_) if listing.feed(answers.next().expect("cycles")).is_err() => break,
                Reading::End => break,
                _ => steps += 1,
            }
            prop_assert!(steps < steps_max, "the listing does not end");
        }
        let mut lookup = Lookup::new(Some(extent(1)), name("b"));
        let mut fetched = 0;
        while let Reading::Fetch(_) = lookup.step() {
            if lookup.feed(answers.next().expect("cycles")).is_err() {
                break;
            }
            fetched += 1;
            prop_assert!(fetched <= usize::from(HEIGHT_MAX) + 1, "the lookup does not end");
        }
        let file = entry("f", Kind::File { size: 3, content: Content::Tree(extent(1)) });
        let mut range = FileRange::new(&file, 0..3).expect("a range");
        let mut steps = 0;
        loop {
            match range.step() {
                Reading::Fetch(_) if range.feed(answers.next().expect("cycles")).is_err() => break,
                Reading::End => break,
                _ => steps += 1,
            }
            prop_assert!(steps < steps_max, "the range does not end");
        }
    }
}
