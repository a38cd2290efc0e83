//! Who one is, and whom one believes: certificates, keys and the pool's token, read from files or made; and connections
//! that show and check them.

pub mod pki;
mod secured;
mod tls;
mod token;

use std::path::Path;

pub use rustls::{ClientConfig, ServerConfig};
pub use secured::{BoundTo, Ending, Secured, Securing};
pub use tls::{TlsFiles, explain, is_a_nodes, node_in};
pub use token::Token;

/// Why credentials cannot be used, in one sentence that names the file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct CredentialsError(String);

impl CredentialsError {
    fn of(path: &Path, why: impl std::fmt::Display) -> CredentialsError {
        CredentialsError(format!("{}: {why}", path.display()))
    }
}

/// Read a file that strangers must not read.
///
/// # Errors
/// It cannot be read, or every user of this machine may.
fn read_secret(path: &Path) -> Result<String, CredentialsError> {
    use std::os::unix::fs::PermissionsExt;
    let wrong = |why: &dyn std::fmt::Display| CredentialsError::of(path, why);
    let metadata = path.metadata().map_err(|error| wrong(&error))?;
    if metadata.permissions().mode() & 0o007 != 0 {
        return Err(wrong(&"every user of this machine may read or change it: chmod 600"));
    }
    std::fs::read_to_string(path).map_err(|error| wrong(&error))
}
