//! The command line of `copse-node`: commands, flags, help, exit codes.
//!
//! Owns what may be typed and what each exit code means. Refuses nothing itself beyond what the
//! types say; the commands do the work in [`crate::commands`].

use std::{net::IpAddr, net::SocketAddr, path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand};
use copse_core::{limits::ZONE_BYTES_MAX, token::JoinToken, units::ByteSize};

const EXAMPLES: &str = "\
Examples:
  Found a network, then start its first node:
    copse-node init --dir /srv/copse --capacity 500GiB
    copse-node run --dir /srv/copse
  Print what others need to join it:
    copse-node token --dir /srv/copse
  On another machine:
    copse-node init --dir /srv/copse --zone attic --join copse1t...
    copse-node run --dir /srv/copse

Exit codes:
  0  done
  1  failed for a reason not listed here; the message says it
  2  wrong usage
  3  no node in the directory, or its key or configuration cannot be used
  4  the directory holds a node already (init)
  5  another process runs the node of this directory
  6  the node does not run or does not answer (status, leave, scrub, limits)
  7  the store cannot be used: not mounted, another node's, or damaged
  8  an address cannot be listened on
  9  the node has left its network: nothing is held there any more (run)";

/// A node of Copse: it stores shards of other people's files, and is a door to the network.
#[derive(Debug, Parser)]
#[command(name = "copse-node", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a node in a directory: found a network, or join one with --join.
    Init(InitArgs),
    /// Run the node of a directory until it is told to stop (SIGTERM or Ctrl-C).
    Run(RunArgs),
    /// Print what others need to join through this node. The node need not run.
    Token(DirArgs),
    /// Ask the running node how it is.
    Status(StatusArgs),
    /// Leave the network: hand everything over to other nodes, then stop. Shows how far it is;
    /// interrupted, it goes on, also at the next start.
    Leave(DirArgs),
    /// Have the running node read all of its disk once now, to find rot.
    Scrub(DirArgs),
    /// Change how fast the running node may repair, until it is restarted.
    Limits(LimitsArgs),
}

/// How to run.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Which node.
    #[command(flatten)]
    pub node: DirArgs,
    /// Read all of the disk once at the start, to find rot.
    #[arg(long)]
    pub scrub_now: bool,
}

/// How fast.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  copse-node limits --dir /srv/copse --uplink 5MB --share 20
  copse-node limits --dir /srv/copse --uplink 0B")]
pub struct LimitsArgs {
    /// Which node.
    #[command(flatten)]
    pub node: DirArgs,
    /// What the line can send per second, with a unit, such as 5MB; 0B: no limit.
    #[arg(long, value_name = "SIZE")]
    pub uplink: ByteSize,
    /// The part of it that repair and moving may take, in percent. [default: as it is now]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub share: Option<u8>,
}

/// Which node.
#[derive(Debug, Args)]
pub struct DirArgs {
    /// The node's directory: key, configuration, store.
    #[arg(long, value_name = "DIR", env = "COPSE_NODE_DIR")]
    pub dir: PathBuf,
}

/// How a new node shall be.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  copse-node init --dir /srv/copse --capacity 500GiB
  copse-node init --dir /srv/copse --zone attic --join copse1t...
  copse-node init --dir /tmp/one --listen 127.0.0.1:0 --grpc 127.0.0.1:0")]
pub struct InitArgs {
    /// Where the node shall live. Created if missing; must not hold a node.
    #[arg(long, value_name = "DIR", env = "COPSE_NODE_DIR")]
    pub dir: PathBuf,
    /// Join the network of this token (`copse-node token` on one of its nodes). Repeat it to have
    /// more nodes to ask. Without it, a new network is founded.
    #[arg(long, value_name = "TOKEN")]
    pub join: Vec<JoinToken>,
    /// What fails together with this node: a house, a rack, a provider. [default: itself alone]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, value_parser = zone)]
    pub zone: String,
    /// How much to offer, with a unit. [default: half of the free space]
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<ByteSize>,
    /// Where other nodes reach this one (UDP). Port 0 takes a free one and keeps it.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:7400")]
    pub listen: SocketAddr,
    /// Where clients reach this node (TCP). Port 0 takes a free one and keeps it.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:7401")]
    pub grpc: SocketAddr,
    /// The address others are told, when it is another one (port mapping, container). May be
    /// repeated. Without a port: that of --listen.
    #[arg(long, value_name = "IP[:PORT]")]
    pub advertise: Vec<Advertise>,
    /// The same for clients. [default: the IPs of --advertise with the port of --grpc]
    #[arg(long, value_name = "IP[:PORT]")]
    pub advertise_grpc: Vec<Advertise>,
}

/// How to ask.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  copse-node status --dir /srv/copse
  copse-node status --dir /srv/copse --json | jq .store.shards")]
pub struct StatusArgs {
    /// Which node.
    #[command(flatten)]
    pub node: DirArgs,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// An address to tell others, whose port may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advertise {
    /// The IP address.
    pub ip: IpAddr,
    /// The port, if another than the one listened on.
    pub port: Option<u16>,
}

impl FromStr for Advertise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ip, port) = match (text.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
            (Ok(ip), _) => (ip, None),
            (_, Ok(address)) if address.port() != 0 => (address.ip(), Some(address.port())),
            _ => {
                return Err("write an IP address, with a port if it differs: 192.0.2.7, \
                            192.0.2.7:7400 or [2001:db8::7]:7400"
                    .to_owned());
            }
        };
        if ip.is_unspecified() {
            return Err(format!("{ip} is nothing that others can reach"));
        }
        Ok(Self { ip, port })
    }
}

fn zone(text: &str) -> Result<String, String> {
    if text.len() > ZONE_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!("at most {ZONE_BYTES_MAX} bytes, no control characters"));
    }
    Ok(text.to_owned())
}

/// How the process ends. The numbers are in the help; they do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed otherwise.
    Failed = 1,
    /// Wrong usage; clap says so itself.
    Usage = 2,
    /// No node, or its key or configuration cannot be used.
    NoNode = 3,
    /// The directory holds a node already.
    AlreadyInitialised = 4,
    /// Another process runs the node.
    Locked = 5,
    /// The node does not answer.
    NotRunning = 6,
    /// The store cannot be used.
    Store = 7,
    /// An address cannot be listened on.
    Listen = 8,
    /// The node has left.
    Left = 9,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_exit_code_is_in_the_help() {
        for code in [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::NoNode,
            Exit::AlreadyInitialised,
            Exit::Locked,
            Exit::NotRunning,
            Exit::Store,
            Exit::Listen,
            Exit::Left,
        ] {
            assert!(EXAMPLES.contains(&format!("\n  {}  ", code as u8)), "{code:?}");
        }
    }

    #[test]
    fn an_advertised_address_may_lack_its_port() {
        let parse = |text: &str| text.parse::<Advertise>();
        assert_eq!(parse("192.0.2.7").expect("an IP").port, None);
        assert_eq!(parse("192.0.2.7:80").expect("both").port, Some(80));
        assert_eq!(parse("2001:db8::7").expect("an IP").port, None);
        assert_eq!(parse("[2001:db8::7]:80").expect("both").port, Some(80));
        for wrong in ["0.0.0.0", "[::]:5", "192.0.2.7:0", "localhost", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
