//! `avidfs pki`: a CA in a folder, and what it signs.

use std::path::Path;

use avidfs::cli::PkiCommand;
use credentials::pki::Pki;
use credentials::{CredentialsError, TlsFiles};

use super::print;
use crate::Failure;

/// Names of the one node there is when no host is named: the nodes of this machine.
const LOOPBACK: &str = "localhost,127.0.0.1,::1";

pub fn pki(command: &PkiCommand) -> Result<(), Failure> {
    match command {
        PkiCommand::Init { folder, hosts, days } => init(folder, hosts, *days)?,
        PkiCommand::Node { folder, names, id, days } => {
            let id = id.as_deref().map(str::parse).transpose();
            let id = id.map_err(|_| Failure::Usage("--id is 32 lower-case hex digits".to_owned()))?;
            say("the node", &Pki::open(folder, *days)?.node(&split(names), id)?)?;
        }
        PkiCommand::Client { folder, name, days } => {
            say("the client", &Pki::open(folder, *days)?.client(name)?)?;
        }
    }
    Ok(())
}

fn init(folder: &Path, hosts: &[String], days: u32) -> Result<(), Failure> {
    let pki = Pki::init(folder, days)?;
    for host in hosts {
        say(&format!("the node {host}"), &pki.node(&split(host), None)?)?;
    }
    if hosts.is_empty() {
        say("nodes on this machine", &pki.node(&split(LOOPBACK), None)?)?;
    }
    say("a client", &pki.client("client")?)?;
    print(&format!("Keep {} where nobody else gets at it.\n", folder.join("ca.key").display()))
}

fn split(names: &str) -> Vec<&str> {
    names.split(',').collect()
}

/// As options, to be copied.
fn say(who: &str, files: &TlsFiles) -> Result<(), Failure> {
    print(&format!(
        "{who}: --tls-cert {} --tls-key {} --tls-ca {}\n",
        files.cert.display(),
        files.key.display(),
        files.ca.display()
    ))
}

impl From<CredentialsError> for Failure {
    fn from(error: CredentialsError) -> Failure {
        Failure::Refused(error.to_string())
    }
}
