//! What the command line takes, with the help that people read.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Args, Parser, Subcommand};
use copse_core::geometry::Geometry;

use crate::{
    exit::{
        self, DATA_LOSS, DEGRADED, EXISTS, FULL, NO_ROOM, OTHER, PARTIAL, REFUSED, UNMET,
        UNREACHABLE, USAGE,
    },
    plan::Plan,
};

/// Shown under the help of `copse` itself.
const AFTER: &str = "\
Start:
  copse join TOKEN            join a network (`copse-node token` on any node prints the token)
  copse put photos            store a folder; prints its capability
  copse get CAPABILITY        get it back

A capability is the address and the key at once: whoever has it can read, nobody else can,
and without it the data is lost to you too. Keep it like a key. Other users of this machine see
the arguments of a command: @FILE stands for the capability in a file, @FILE:/some/path for a
path in its tree, @- for one on standard input.

Exit codes:
    0 done
    1 another error
    2 wrong usage
    3 done but for a part
    4 too few shards are left or can be reached
    5 too few nodes answer
    6 refused: it would not survive the loss of one node
    7 no such path in the tree
    8 the destination exists
    9 wrong capability or token
   10 too little room on the nodes
   11 less safe than it should be
   12 the wish cannot be met
   13 too little room on this machine
  130 interrupted; run the same command again to go on";

/// Heading of the flags that every command has.
const EVERYWHERE: &str = "With every command";

/// Stores files in a network of other people's disks, encrypted before they leave this machine.
#[derive(Debug, Parser)]
#[command(name = "copse", version, after_help = AFTER, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Directory of this client's state: the network, its secret, its journal
    /// [default: $COPSE_HOME, else $XDG_CONFIG_HOME/copse, else ~/.config/copse]
    #[arg(long, global = true, value_name = "DIR", help_heading = EVERYWHERE)]
    pub(crate) home: Option<PathBuf>,
    /// Print results as JSON on standard output
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub(crate) json: bool,
    /// No progress and no remarks, only errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = EVERYWHERE)]
    pub(crate) quiet: bool,
    /// Say more on standard error; -vv tells of every request
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = EVERYWHERE)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Join the network that a token names
    ///
    /// Says which code the network's size gives by default, and what would still lose data with it; `copse plan`
    /// tells more.
    #[command(visible_alias = "init")]
    Join {
        /// What `copse-node token` printed; @FILE for what is in a file, @- for standard input
        token: OsString,
    },
    /// Store files and folders; print the capability to read them
    ///
    /// Kept are names, contents, holes, modes, times of the last change, links and empty folders. Not kept
    /// are owners, access lists, extended attributes, and that two names are one file; nor do programs come
    /// back set-user-id. What cannot be read is named, and the rest is stored: of a folder
    /// that cannot be read the folder itself, empty.
    ///
    /// Ctrl-C and SIGTERM stop it as soon as the chunks under way are stored, at most 20 s later; a second one
    /// stops it at once. The same command goes on with an interrupted one.
    ///
    /// Of --json the counts of shards are of all chunks of what was put, also of those that were there before:
    /// redundancy_min of redundancy_target has the chunk that lacks most; shards_on_one_node_max is what the
    /// loss of one node takes of a chunk at most, shards_left_after_one_loss_min what it leaves of the one that
    /// can spare least.
    #[command(after_long_help = exit::help(&[
        (PARTIAL, "some could not be read"),
        (UNREACHABLE, "nothing was printed; what is stored already is not sent again"),
        (REFUSED, "--allow-fragile stores it all the same"),
        (FULL, "nothing was printed; what is stored already is not sent again"),
    ]))]
    Put(Put),
    /// Get a tree, a folder or a file back
    ///
    /// Writes to DESTINATION.copse-partial beside the destination, and moves it there when it is complete.
    /// The same command goes on with one that was interrupted by Ctrl-C, SIGTERM or anything else. What
    /// cannot be read, or what the file system of
    /// the destination cannot hold, is named, and the rest is restored.
    #[command(after_long_help = exit::help(&[
        (PARTIAL, "some could not be read, or not be written there as they were"),
        (DATA_LOSS, "of some entries"),
        (EXISTS, "nothing was done, or a part of another tree is beside it"),
        (NO_ROOM, "what is there is kept for the next try"),
    ]))]
    Get {
        /// A capability, or a path in one: CAPABILITY/some/path
        capability: OsString,
        /// Where to; `-` is standard output, for one file [default: its name, here]
        destination: Option<PathBuf>,
        /// Make the destination even if some could not be restored; else the rest waits beside it
        #[arg(long)]
        partial: bool,
    },
    /// Write a file, or a range of it, to standard output
    Cat {
        /// The file: CAPABILITY or CAPABILITY/some/path
        capability: OsString,
        /// Bytes FIRST-LAST (both included), FIRST- to the end, or -COUNT from the end
        #[arg(long, value_name = "FIRST-LAST", allow_hyphen_values = true)]
        range: Option<ByteRange>,
    },
    /// List a folder
    ///
    /// Bytes of a name that are no text, or that would upset a terminal, are shown as \xNN: a shell takes such
    /// a name as $'...'. With --json each entry is an object on a line of its own.
    #[command(after_long_help = exit::help(&[
        (PARTIAL, "some folders could not be listed"),
        (DATA_LOSS, "of some folders"),
    ]))]
    Ls {
        /// The folder: CAPABILITY or CAPABILITY/some/path
        capability: OsString,
        /// With modes, sizes and times
        #[arg(short, long)]
        long: bool,
        /// With everything below
        #[arg(short = 'R', long)]
        recursive: bool,
    },
    /// List the nodes of the network and whether they answer
    Nodes,
    /// Compute how long data would last, which geometry (DATA+PARITY) would do, and what it costs
    ///
    /// Computes; stores and changes nothing. Every figure is given twice, for two laws of the time that
    /// a repair takes: exponential (pessimistic) and fixed (optimistic). A wish is met when it is met
    /// with the first; when it is not, the answer says what comes nearest, and what would do.
    #[command(after_long_help = exit::help(&[(UNMET, "the data would not last as long")]))]
    Plan(Plan),
    /// Check this client's state and its way to the network; say what is wrong and what to do
    #[command(after_long_help = exit::help(&[
        (0, "all is well"),
        (OTHER, "it says what is not well"),
        (USAGE, "no network was joined"),
        (UNREACHABLE, "the rest could not be looked at"),
    ]))]
    Doctor,
    /// Show how the network is: its nodes, and whether all chunks in it have their shards
    ///
    /// Asks every node. The first line says whether all is well.
    #[command(after_long_help = exit::help(&[
        (0, "there is nothing to do, or it is being done"),
        (PARTIAL, "nodes that are there did not say how their chunks are"),
        (DATA_LOSS, "chunks are lost or cannot be read now"),
        (DEGRADED, "the loss of one more node would lose data"),
    ]))]
    Status,
    /// Check that every chunk of a tree has all its shards; make those that are missing
    ///
    /// Asks the nodes that may hold them which shards they have. With a verify capability, which
    /// `copse verifier` prints, the same is done without a key to names and contents, so no file is
    /// named. The exit code is of how it is in the end. What does not survive the loss of one node is
    /// less safe than it should be also where --allow-fragile was given on purpose.
    #[command(after_long_help = exit::help(&[
        (0, "every chunk has all its shards"),
        (PARTIAL, "some of the tree could not be looked into, for another reason"),
        (DATA_LOSS, "some chunks cannot be read"),
        (DEGRADED, "all can be read, with shards missing or on too few nodes"),
    ]))]
    Check {
        /// A capability, or a path in one: CAPABILITY/some/path; or a verify capability
        capability: OsString,
        /// Make missing shards from those that are there, and store them; needs no other copy
        #[arg(long)]
        repair: bool,
        /// Have every node prove a random part of each shard instead of taking its word
        #[arg(long)]
        deep: bool,
    },
    /// Print a capability that can check and repair a tree, and not read it
    ///
    /// Lists the ids and sizes of the tree's chunks and stores that list in the network. What is
    /// printed, a verify capability (copse1v...), opens the list and nothing else: give it to whoever
    /// shall look after the tree with `copse check`. Made again, it is the same.
    Verifier {
        /// A capability, or a path in one: CAPABILITY/some/path
        capability: OsString,
        /// Store the list even if the loss of one node would lose it
        #[arg(long)]
        allow_fragile: bool,
    },
    /// Serve a tree to other programs over gRPC (package copse.files.v1)
    Serve {
        /// A capability, or a path in one
        capability: OsString,
        /// Where to listen: IP:PORT or unix:PATH
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7402")]
        grpc: String,
        /// Ask callers for the bearer token in this file; needed to listen beyond this machine
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Print the completion script of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Whether the same command goes on where an interrupted one was.
    pub(crate) fn is_resumable(&self) -> bool {
        let standard = Path::new("-");
        match self {
            Self::Put(put) => put.paths.iter().all(|path| path != standard),
            Self::Get { destination, .. } => destination.as_deref() != Some(standard),
            _ => false,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Put {
    /// Files and folders; `-` is standard input
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// Any DATA of DATA+PARITY shards rebuild a chunk [default: by the size of the network]
    #[arg(long, value_name = "DATA+PARITY")]
    pub(crate) geometry: Option<Geometry>,
    /// Store even if the loss of one node would lose data
    #[arg(long)]
    pub(crate) allow_fragile: bool,
    /// Name of what comes from standard input
    #[arg(long, default_value = "stdin")]
    pub(crate) name: String,
}

/// Bytes of a file, as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteRange {
    /// From a byte to another, both included.
    Closed(u64, u64),
    /// From a byte to the end.
    From(u64),
    /// The last so many.
    Last(u64),
}

impl ByteRange {
    /// First byte and number of bytes in a file of `size`; `None` when the first byte lies behind
    /// the end.
    pub(crate) fn within(self, size: u64) -> Option<(u64, u64)> {
        match self {
            Self::Closed(first, last) => {
                (first < size).then(|| (first, last.min(size - 1) - first + 1))
            }
            Self::From(first) => (first <= size).then(|| (first, size - first)),
            Self::Last(count) => Some((size - count.min(size), count.min(size))),
        }
    }
}

impl std::str::FromStr for ByteRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no range; write 0-99, 100- or -100");
        let number = |digits: &str| digits.parse::<u64>().map_err(|_| wrong());
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        match (first, last) {
            ("", "") => Err(wrong()),
            ("", count) => Ok(Self::Last(number(count)?)),
            (first, "") => Ok(Self::From(number(first)?)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(format!("the range {text} ends before it starts"));
                }
                Ok(Self::Closed(first, last))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn words(text: &str) -> Vec<&str> {
        text.split_whitespace().collect()
    }

    #[test]
    fn the_help_names_every_exit_code() {
        let at = AFTER.find("Exit codes:").expect("a list");
        let all = words(&AFTER[at..]).join(" ") + " ";
        for (code, meaning) in exit::MEANINGS {
            assert!(all.contains(&format!(" {code} {meaning} ")), "{code} {meaning}: not in {all}");
        }
    }

    #[test]
    fn the_help_of_a_command_gives_exit_codes_the_meanings_they_have() {
        let mut listed = 0;
        for mut command in Cli::command().get_subcommands().cloned() {
            let help = command.render_long_help().to_string();
            let name = command.get_name().to_owned();
            let (prose, list) = help.split_once("Exit codes:\n").unwrap_or((&help, ""));
            // Only the list may speak of codes: what is said elsewhere is not checked.
            let prose = words(&prose.to_lowercase()).join(" ");
            let stray = prose.match_indices("exit code").find(|(at, _)| {
                prose[*at..].split(['.', ';']).next().is_some_and(|s| s.contains(char::is_numeric))
            });
            assert_eq!(stray, None, "{name}: {prose}");
            for line in list.lines().filter(|line| !line.trim().is_empty()) {
                let (code, meaning) = line.trim().split_once(' ').expect("a code and a meaning");
                let known = exit::MEANINGS.iter().find(|(known, _)| code.parse() == Ok(*known));
                let (_, known) = known.unwrap_or_else(|| panic!("{name}: no such code: {line}"));
                assert!(meaning.starts_with(&format!("{known}: ")), "{name}: {line}");
                listed += 1;
            }
        }
        assert_eq!(listed, 23, "those of put, get, ls, plan, doctor, status and check");
    }

    #[test]
    fn ranges_are_read_and_cut_to_the_file() {
        for (text, size, expected) in [
            ("0-0", 10, Some((0, 1))),
            ("3-5", 10, Some((3, 3))),
            ("3-50", 10, Some((3, 7))),
            ("10-12", 10, None),
            ("10-", 10, Some((10, 0))),
            ("11-", 10, None),
            ("-4", 10, Some((6, 4))),
            ("-40", 10, Some((0, 10))),
            ("0-0", 0, None),
        ] {
            let range: ByteRange = text.parse().expect("a range");
            assert_eq!(range.within(size), expected, "{text} of {size}");
        }
        for wrong in ["", "-", "5", "a-b", "5-4", "0-99999999999999999999"] {
            assert!(wrong.parse::<ByteRange>().is_err(), "{wrong:?} was taken for a range");
        }
    }
}
