//! What was meant for the object store: as for a mount, what is typed wins over the environment, that over the file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ConfigError, Layers, Surroundings, Values, at_least_a_second, object_size, peers, typed};
use super::{access_arguments, assemble_access};
use crate::access::Access;
use crate::cli::{OwnerArgs, PutArgs, StoreArgs};
use crate::objects::{StoreOptions, USUAL_PART};
use crate::transport::NodeAddress;

/// Which pool is meant, and how it is used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreConfig {
    /// Who says which nodes there are.
    pub told_by: ToldBy,
    /// By what the nodes know us, and we know them.
    pub access: Access,
    /// How the store is used.
    pub options: StoreOptions,
}

/// Who says which nodes a pool has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToldBy {
    /// A file; absolute.
    File(PathBuf),
    /// Nodes.
    Peers(Vec<NodeAddress>),
}

/// For a command that reads or deletes; `parallel` parts are read at once.
///
/// # Errors
/// An option makes no sense, or nothing says which nodes there are.
pub fn store_config(
    args: &StoreArgs,
    parallel: u16,
    surroundings: &Surroundings<'_>,
) -> Result<StoreConfig, ConfigError> {
    let mut config = assemble(args, None, surroundings)?;
    config.options.get_parts = parallel.into();
    Ok(config)
}

/// For `avidfs put`.
///
/// # Errors
/// As `store_config`.
pub fn put_config(args: &PutArgs, surroundings: &Surroundings<'_>) -> Result<StoreConfig, ConfigError> {
    let mut config = assemble(&args.store, args.object_size.clone(), surroundings)?;
    config.options.put_parts = args.parallel.into();
    Ok(config)
}

/// The nodes that `--peers` names, or the environment, or the file.
///
/// # Errors
/// They are not named, or one is none.
pub fn named_peers(
    given: Option<&String>,
    access: &Access,
    surroundings: &Surroundings<'_>,
) -> Result<Vec<NodeAddress>, ConfigError> {
    let values = Layers::below(vec![typed([("peers", given.cloned())])], None, surroundings)?;
    let named = values.parse("peers", |text| peers(text, access))?;
    named.ok_or_else(|| ConfigError("--peers is missing: say which nodes".to_owned()))
}

/// Where the owner's key is; absolute.
///
/// # Errors
/// Nothing says where.
pub fn owner_key(args: &OwnerArgs, surroundings: &Surroundings<'_>) -> Result<PathBuf, ConfigError> {
    if let Some(path) = &args.owner_key {
        return Ok(surroundings.current_dir.join(path));
    }
    let set = |name: &str| (surroundings.env)(name).filter(|value| value.starts_with('/'));
    let data = set("XDG_DATA_HOME").map(PathBuf::from);
    let data = data.or_else(|| set("HOME").map(|home| Path::new(&home).join(".local/share")));
    let missing =
        || ConfigError("neither XDG_DATA_HOME nor HOME is set: say where with --owner-key".to_owned());
    Ok(data.ok_or_else(missing)?.join("avidfs/owner.key"))
}

fn assemble(
    args: &StoreArgs,
    part_size: Option<String>,
    surroundings: &Surroundings<'_>,
) -> Result<StoreConfig, ConfigError> {
    let values = Layers::below(vec![given(args, part_size)], None, surroundings)?;
    let access = assemble_access(&values, surroundings)?;
    let told_by = match &args.members {
        Some(path) => ToldBy::File(surroundings.current_dir.join(path)),
        None => {
            let named = values.parse("peers", |text| peers(text, &access))?;
            let missing = || ConfigError("say which nodes there are with --peers or --members".to_owned());
            ToldBy::Peers(named.ok_or_else(missing)?)
        }
    };
    let part_bytes = values.or("object-size", object_size, USUAL_PART)?;
    let io_limit = values.or("io-timeout", at_least_a_second, Duration::from_secs(30))?;
    let options = StoreOptions { part_bytes, io_limit, ..StoreOptions::default() };
    Ok(StoreConfig { told_by, access, options })
}

fn given(args: &StoreArgs, part_size: Option<String>) -> Values {
    let given =
        [("peers", args.peers.clone()), ("object-size", part_size), ("io-timeout", args.io_timeout.clone())];
    typed(given.into_iter().chain(access_arguments(&args.access)))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Environment<'a> = &'a [(&'a str, &'a str)];

    fn in_surroundings<T>(env: Environment<'_>, work: impl FnOnce(&Surroundings<'_>) -> T) -> T {
        let env =
            |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        work(&Surroundings { env: &env, current_dir: "/here".into(), root: false })
    }

    fn meant(args: &StoreArgs, env: Environment<'_>) -> Result<StoreConfig, ConfigError> {
        in_surroundings(env, |surroundings| store_config(args, 4, surroundings))
    }

    #[test]
    fn nodes_are_named_by_a_file_by_options_or_by_the_environment() {
        let node = |text: &str| NodeAddress(text.to_owned());
        let env = [("AVIDFS_PEERS", "a:1"), ("AVIDFS_IO_TIMEOUT", "5s"), ("AVIDFS_OBJECT_SIZE", "1MiB")];
        let config = meant(&StoreArgs::default(), &env).unwrap();
        assert_eq!(config.told_by, ToldBy::Peers(vec![node("http://a:1")]));
        assert_eq!((config.options.io_limit.as_secs(), config.options.part_bytes), (5, 1 << 20));
        let peers = StoreArgs { peers: Some("b:2,c:3".into()), ..StoreArgs::default() };
        let config = meant(&peers, &env).unwrap();
        assert_eq!(config.told_by, ToldBy::Peers(vec![node("http://b:2"), node("http://c:3")]));
        let config = meant(&StoreArgs { members: Some("m".into()), ..peers }, &env).unwrap();
        assert_eq!(config.told_by, ToldBy::File("/here/m".into()));
        let error = meant(&StoreArgs::default(), &[]).unwrap_err().to_string();
        assert_eq!(error, "say which nodes there are with --peers or --members");
        let error = meant(&StoreArgs::default(), &[("AVIDFS_PEERS", "x")]).unwrap_err().to_string();
        assert!(error.starts_with("AVIDFS_PEERS=x: "), "{error}");
    }

    #[test]
    fn the_owners_key_is_among_the_users_data() {
        let found = |args: &OwnerArgs, env: Environment<'_>| {
            in_surroundings(env, |surroundings| owner_key(args, surroundings))
        };
        let (usual, given) = (OwnerArgs::default(), OwnerArgs { owner_key: Some("k".into()) });
        let home = ("HOME", "/home/me");
        assert_eq!(found(&usual, &[home]).unwrap(), Path::new("/home/me/.local/share/avidfs/owner.key"));
        assert_eq!(
            found(&usual, &[home, ("XDG_DATA_HOME", "/d")]).unwrap(),
            Path::new("/d/avidfs/owner.key")
        );
        assert_eq!(found(&given, &[home]).unwrap(), Path::new("/here/k"));
        assert!(found(&usual, &[]).unwrap_err().to_string().contains("--owner-key"));
    }
}
