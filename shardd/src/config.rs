//! What the operator meant: flags over environment over a YAML file over defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use clap::Parser;
use common::nearest::nearest;
use common::size::ByteSize;
use credentials::TlsFiles;
use serde::Deserialize;

use crate::evil::Mode;

const DEFAULT_LISTEN: &str = "127.0.0.1:7001";
const LEAST_CAPACITY: ByteSize = ByteSize(1 << 20);

/// One node of an avidfs pool: keeps verified fragments in a folder and serves them over HTTP.
#[derive(Parser, Debug, Default)]
#[command(name = "shardd", version, max_term_width = 100, args_override_self = true)]
pub struct Flags {
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:7001]
    #[arg(long, env = "SHARDD_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Folder that keeps the fragments; made if absent
    #[arg(long, env = "SHARDD_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Bytes it may fill, such as 100GiB [default: all its file system has]
    #[arg(long, env = "SHARDD_CAPACITY", value_name = "SIZE")]
    pub capacity: Option<ByteSize>,
    /// What may fail together with this node: a host, a rack, a room
    #[arg(long, env = "SHARDD_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
    /// Its certificate, PEM: it then speaks TLS alone, and to clients with a certificate of the CA alone
    #[arg(long, env = "SHARDD_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The key of its certificate, PEM
    #[arg(long, env = "SHARDD_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// The certificate of the CA, PEM
    #[arg(long, env = "SHARDD_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// File with the pool's token: it then answers those alone who have it
    #[arg(long, env = "SHARDD_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The list of the nodes that agree on objects, as avidfs members prints it; the node then is part of their object
    /// store
    #[arg(long, env = "SHARDD_MEMBERS", value_name = "FILE")]
    pub members: Option<PathBuf>,
    /// Bytes of its disk that the objects of one owner may take, with all that is kept beside them [default: all]
    #[arg(long, env = "SHARDD_OWNER_QUOTA", value_name = "SIZE")]
    pub owner_quota: Option<ByteSize>,
    /// Listen on an address that others can reach, without anything that keeps strangers out
    #[arg(long, env = "SHARDD_INSECURE")]
    pub insecure: bool,
    /// For tests: lie in these ways; only where SHARDD_ALLOW_EVIL=1 says that it may
    #[arg(long, value_name = "MODE,..", value_delimiter = ',')]
    pub evil: Vec<Mode>,
    /// For tests: the number that the lies are drawn from [default: 1]
    #[arg(long, value_name = "NUMBER", requires = "evil")]
    pub evil_seed: Option<u64>,
    /// What to log: error, warn, info, debug, or a filter such as shardd=debug [default: info]
    #[arg(long, env = "SHARDD_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// YAML file with any of these, by their long names
    #[arg(long, env = "SHARDD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The same from a file.
#[derive(Deserialize, Debug, Default)]
struct FileConfig {
    listen: Option<String>,
    data: Option<PathBuf>,
    capacity: Option<ByteSize>,
    zone: Option<String>,
    #[serde(rename = "tls-cert")]
    tls_cert: Option<PathBuf>,
    #[serde(rename = "tls-key")]
    tls_key: Option<PathBuf>,
    #[serde(rename = "tls-ca")]
    tls_ca: Option<PathBuf>,
    #[serde(rename = "token-file")]
    token_file: Option<PathBuf>,
    members: Option<PathBuf>,
    #[serde(rename = "owner-quota")]
    owner_quota: Option<ByteSize>,
    insecure: Option<bool>,
    log: Option<String>,
}

const KEYS: [&str; 12] = [
    "listen",
    "data",
    "capacity",
    "zone",
    "tls-cert",
    "tls-key",
    "tls-ca",
    "token-file",
    "members",
    "owner-quota",
    "insecure",
    "log",
];

/// What a node is to do, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its data folder.
    pub data: PathBuf,
    /// Bytes it may fill.
    pub capacity: Option<u64>,
    /// What may fail together with it.
    pub zone: Option<String>,
    /// What it shows to clients and knows them by; without it, it speaks plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The file with the pool's token; without it everyone is answered.
    pub token_file: Option<PathBuf>,
    /// The file with the list of those it agrees on objects with.
    pub members: Option<PathBuf>,
    /// Bytes of its disk that the objects of one owner may take.
    pub owner_quota: Option<u64>,
    /// How it lies; it does not otherwise.
    pub evil: Option<Evil>,
    /// What to log.
    pub log: String,
}

/// How a node lies.
#[derive(Debug, PartialEq, Eq)]
pub struct Evil {
    /// In which ways.
    pub modes: Vec<Mode>,
    /// What is drawn from.
    pub seed: u64,
}

impl fmt::Display for Evil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let modes: Vec<&str> = self.modes.iter().map(|mode| mode.name()).collect();
        write!(f, "{} (seed {})", modes.join(", "), self.seed)
    }
}

/// A sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Config {
    /// Put together what the flags, and the file they name, say.
    pub fn of(flags: Flags) -> Result<Config, ConfigError> {
        let file = flags.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let listen = flags.listen.or(file.listen).unwrap_or_else(|| DEFAULT_LISTEN.into());
        let insecure = flags.insecure || file.insecure.unwrap_or(false);
        let data = flags.data.or(file.data);
        let data =
            data.ok_or_else(|| ConfigError("--data DIR is missing: where to keep fragments".into()))?;
        let tls = TlsFiles::of(
            flags.tls_cert.or(file.tls_cert),
            flags.tls_key.or(file.tls_key),
            flags.tls_ca.or(file.tls_ca),
        )
        .map_err(|error| ConfigError(error.to_string()))?;
        let token_file = flags.token_file.or(file.token_file);
        let is_guarded = tls.is_some() || token_file.is_some();
        Ok(Config {
            listen: address(&listen, is_guarded || insecure)?,
            data,
            capacity: flags.capacity.or(file.capacity).map(capacity).transpose()?,
            zone: flags.zone.or(file.zone),
            tls,
            token_file,
            members: flags.members.or(file.members),
            owner_quota: flags.owner_quota.or(file.owner_quota).map(|size| size.bytes()),
            evil: evil(flags.evil, flags.evil_seed),
            log: flags.log.or(file.log).unwrap_or_else(|| "info".into()),
        })
    }
}

fn evil(modes: Vec<Mode>, seed: Option<u64>) -> Option<Evil> {
    (!modes.is_empty()).then(|| Evil { modes, seed: seed.unwrap_or(1) })
}

fn address(listen: &str, for_others: bool) -> Result<SocketAddr, ConfigError> {
    let resolved = listen.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    let address = resolved.ok_or_else(|| {
        ConfigError(format!("--listen {listen:?} is not an address such as {DEFAULT_LISTEN}"))
    })?;
    if !address.ip().is_loopback() && !for_others {
        let why = "others can reach it and nothing would keep strangers out: give --tls-cert, --tls-key and \
                   --tls-ca, or --token-file, or say --insecure";
        return Err(ConfigError(format!("not listening on {address}: {why}")));
    }
    Ok(address)
}

fn capacity(size: ByteSize) -> Result<u64, ConfigError> {
    if size < LEAST_CAPACITY {
        return Err(ConfigError(format!("capacity {size} is below {LEAST_CAPACITY}")));
    }
    Ok(size.bytes())
}

fn read(path: &Path) -> Result<FileConfig, ConfigError> {
    let wrong = |why: &dyn fmt::Display| ConfigError(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    parse(&text).map_err(|error| wrong(&error))
}

fn parse(text: &str) -> Result<FileConfig, ConfigError> {
    let wrong = |error: yaml_serde::Error| ConfigError(error.to_string());
    let value: Option<BTreeMap<String, yaml_serde::Value>> = yaml_serde::from_str(text).map_err(wrong)?;
    let unknown = value.iter().flatten().map(|(key, _)| key).find(|key| !KEYS.contains(&key.as_str()));
    if let Some(key) = unknown {
        let meant = nearest(key, &KEYS).map(|known| format!(", did you mean {known}?"));
        return Err(ConfigError(format!("unknown key {key}{}", meant.unwrap_or_default())));
    }
    let config: Option<FileConfig> = yaml_serde::from_str(text).map_err(wrong)?;
    Ok(config.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;

    use super::*;

    fn flags(data: &str) -> Flags {
        Flags { data: Some(data.into()), ..Flags::default() }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.yaml");
        std::fs::write(&path, "listen: 127.0.0.1:9\ndata: /from/file\ncapacity: 3GiB\n").unwrap();
        let from_file = Config::of(Flags { config: Some(path.clone()), ..Flags::default() }).unwrap();
        assert_eq!(from_file.data, Path::new("/from/file"));
        assert_eq!(from_file.capacity, Some(3 << 30));
        let both = Config::of(Flags { config: Some(path), ..flags("/from/flags") }).unwrap();
        assert_eq!(both.data, Path::new("/from/flags"));
        assert_eq!(both.listen.port(), 9);
        assert_eq!(Config::of(flags("/d")).unwrap().listen.port(), 7001);
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest() {
        let error = parse("capcity: 1GiB").unwrap_err().to_string();
        assert_eq!(error, "unknown key capcity, did you mean capacity?");
        assert!(parse("- a list").is_err());
        assert!(parse("capacity: lots").unwrap_err().to_string().contains("64MiB"));
        assert!(parse("").is_ok() && parse("capacity: 1048576").is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_one_sentence() {
        let sentence = |flags| Config::of(flags).unwrap_err().to_string();
        assert!(sentence(Flags::default()).contains("--data"));
        let with_listen = |listen: &str| Flags { listen: Some(listen.into()), ..flags("/d") };
        assert!(sentence(with_listen("nowhere")).contains("not an address"));
        assert!(sentence(with_listen("0.0.0.0:7001")).contains("--insecure"));
        let choices = "--tls-cert, --tls-key and --tls-ca, or --token-file, or say --insecure";
        assert!(sentence(with_listen("[::]:7001")).ends_with(choices));
        let file = || Some("file".into());
        let with_tls =
            Flags { tls_cert: file(), tls_key: file(), tls_ca: file(), ..with_listen("0.0.0.0:1") };
        assert!(Config::of(with_tls).is_ok());
        assert!(Config::of(Flags { token_file: file(), ..with_listen("0.0.0.0:1") }).is_ok());
        assert!(Config::of(Flags { insecure: true, ..with_listen("0.0.0.0:7001") }).is_ok());
        assert!(sentence(Flags { capacity: Some(ByteSize(5)), ..flags("/d") }).contains("below 1MiB"));
    }

    #[test]
    fn the_flags_are_well_formed() {
        use clap::CommandFactory;
        Flags::command().debug_assert();
    }

    #[test]
    fn whatever_the_file_it_is_refused_in_one_sentence_or_means_something() {
        let valid = [
            "listen: 127.0.0.1:9\ndata: /d\ncapacity: 3GiB\nzone: \"a b\"\ninsecure: false\nlog: info\n",
            "# nothing yet\n",
            "tls-cert: &c c.pem\ntls-key: *c\ntls-ca: *c\ncapacity: 1048576\ndata: |-\n  d\n",
        ];
        let valid = valid.map(|text| text.as_bytes().to_vec());
        // Aliases may stand for aliases; the library gives up when it has read a hundred times as many of them as there
        // are in the file, which is one's own.
        let most = |length: usize| (256 << 10) + (64 << 10) * length;
        let parse = |bytes: &[u8]| {
            let text = std::str::from_utf8(bytes).ok()?;
            parse(text).map_err(|error| assert!(!error.to_string().is_empty())).ok()
        };
        fuzz("node-config", &valid, most, parse, |_, _| ());
    }
}
