//! A small CA: a folder with its key, and the certificates of nodes and clients that it signed.
//! Clients may only ask. Nodes may be asked, and may ask other nodes for what their certificates' role allows.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::hash::HashId;
use common::wire::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::tls::{NODE_URI, ROLE_URI};
use crate::{CredentialsError, TlsFiles, read_secret};

/// How long what is made is valid, unless something else is said: there is nothing that would renew it unasked.
pub const USUAL_DAYS: u32 = 3650;
/// Clocks differ.
const BEFORE: Duration = Duration::from_secs(24 * 3600);

/// A CA in a folder.
pub struct Pki {
    folder: PathBuf,
    days: u32,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Make a CA in a folder, which is made if it is absent.
    ///
    /// # Errors
    /// There is a CA already, or the folder cannot be written.
    pub fn init(folder: &Path, days: u32) -> Result<Pki, CredentialsError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| CredentialsError::of(folder, error))?;
        let key = KeyPair::generate().map_err(|error| CredentialsError::of(folder, error))?;
        let params = authority(&key, days);
        let certificate = params.self_signed(&key).map_err(|error| CredentialsError::of(folder, error))?;
        write_new(folder, &[("ca.key", &key.serialize_pem()), ("ca.pem", &certificate.pem())])?;
        Ok(Pki { folder: folder.to_owned(), days, issuer: Issuer::new(params, key) })
    }

    /// The CA of a folder.
    ///
    /// # Errors
    /// There is none.
    pub fn open(folder: &Path, days: u32) -> Result<Pki, CredentialsError> {
        let path = folder.join("ca.key");
        let key = KeyPair::from_pem(&read_secret(&path)?);
        let key = key.map_err(|_| CredentialsError::of(&path, "it is not the key of a CA"))?;
        Ok(Pki { folder: folder.to_owned(), days, issuer: Issuer::new(authority(&key, days), key) })
    }

    /// A certificate for a node that is reached by these names; one bound to an identity stands for no other node.
    ///
    /// # Errors
    /// A name is none, or there are files of the first one already.
    pub fn node(&self, names: &[&str], node: Option<NodeId>) -> Result<TlsFiles, CredentialsError> {
        let usage = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let mut params = self.params(names, usage)?;
        let bound = node.map(|node| format!("{NODE_URI}{node}"));
        for uri in [Some(ROLE_URI.to_owned()), bound].into_iter().flatten() {
            params.subject_alt_names.push(SanType::URI(uri.try_into().expect("a URN of these is ASCII")));
        }
        self.issue(names[0], &params)
    }

    /// A certificate for a client, which is known by its name to people alone.
    ///
    /// # Errors
    /// As `node`.
    pub fn client(&self, name: &str) -> Result<TlsFiles, CredentialsError> {
        self.issue(name, &self.params(&[name], vec![ExtendedKeyUsagePurpose::ClientAuth])?)
    }

    fn params(
        &self,
        names: &[&str],
        usage: Vec<ExtendedKeyUsagePurpose>,
    ) -> Result<CertificateParams, CredentialsError> {
        names.iter().try_for_each(|name| check_name(name))?;
        let owned: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(owned);
        let mut params =
            params.map_err(|error| CredentialsError(format!("{}: {error}", names.join(", "))))?;
        params.distinguished_name = common_name(names[0]);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usage;
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, self.days);
        Ok(params)
    }

    fn issue(&self, name: &str, params: &CertificateParams) -> Result<TlsFiles, CredentialsError> {
        let wrong = |error: rcgen::Error| CredentialsError(format!("{name}: {error}"));
        let key = KeyPair::generate().map_err(wrong)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(wrong)?;
        let (key_name, cert_name) = (format!("{name}.key"), format!("{name}.pem"));
        write_new(&self.folder, &[(&key_name, &key.serialize_pem()), (&cert_name, &certificate.pem())])?;
        let file = |name: &str| self.folder.join(name);
        Ok(TlsFiles { cert: file(&cert_name), key: file(&key_name), ca: file("ca.pem") })
    }
}

/// What a CA's certificate says. It follows from the key, so that the key alone is enough to sign with later.
fn authority(key: &KeyPair, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    let digest = HashId::Blake3.hash(key.public_key_raw()).to_string();
    params.distinguished_name = common_name(&format!("avidfs CA {}", &digest[..16]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, days);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn valid_for(params: &mut CertificateParams, days: u32) {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = date_time_ymd(1970, 1, 1) + since_1970.saturating_sub(BEFORE);
    params.not_after = date_time_ymd(1970, 1, 1) + since_1970 + Duration::from_secs(u64::from(days) * 86_400);
}

/// It becomes part of a file's name.
fn check_name(name: &str) -> Result<(), CredentialsError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if name.is_empty() || name.len() > 64 || name.starts_with(['.', '-']) || !name.chars().all(plain) {
        return Err(CredentialsError(format!("{name:?} is neither the name nor the address of a host")));
    }
    Ok(())
}

/// Write files for their owner alone; none if one of them is there.
fn write_new(folder: &Path, files: &[(&str, &str)]) -> Result<(), CredentialsError> {
    let taken = files.iter().map(|(name, _)| folder.join(name)).find(|path| path.exists());
    if let Some(path) = taken {
        return Err(CredentialsError::of(&path, "it exists, and nothing is overwritten"));
    }
    for (name, text) in files {
        let path = folder.join(name);
        write_private(&path, text).map_err(|error| CredentialsError::of(&path, error))?;
    }
    Ok(())
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use avidfs_tests::fuzz::fuzz;
    use rustls::RootCertStore;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;
    use crate::tls::{certificates_in, node_in};

    #[test]
    fn what_is_made_can_be_used_and_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::init(&folder.path().join("pki"), USUAL_DAYS).unwrap();
        pki.node(&["localhost", "127.0.0.1", "::1"], None).unwrap().server().unwrap();
        let client = pki.client("client").unwrap();
        client.client().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.path().join("pki")), 0o700);
        for entry in std::fs::read_dir(folder.path().join("pki")).unwrap() {
            assert_eq!(mode(&entry.unwrap().path()), 0o600);
        }
        std::fs::set_permissions(&client.key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let sentence = client.client().unwrap_err().to_string();
        assert!(
            sentence.ends_with("every user of this machine may read or change it: chmod 600"),
            "{sentence}"
        );
    }

    #[test]
    fn a_ca_signs_later_as_it_did_at_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = Pki::init(folder.path(), USUAL_DAYS).unwrap();
        let later = Pki::open(folder.path(), USUAL_DAYS).unwrap();
        assert_eq!(first.issuer.key().serialize_pem(), later.issuer.key().serialize_pem());
        let name = |key| authority(key, 1).distinguished_name;
        assert_eq!(name(first.issuer.key()), name(later.issuer.key()));
    }

    #[test]
    fn nothing_is_overwritten_and_no_name_leaves_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::init(folder.path(), USUAL_DAYS).unwrap();
        pki.client("me").unwrap();
        let refused = |done: Result<TlsFiles, CredentialsError>| done.unwrap_err().to_string();
        assert!(refused(pki.client("me")).ends_with("me.key: it exists, and nothing is overwritten"));
        assert!(refused(pki.node(&["me"], None)).contains("it exists"));
        assert!(Pki::init(folder.path(), USUAL_DAYS).is_err());
        for wrong in ["", "../me", "a/b", ".hidden", "-x", "a b", "a,b"] {
            assert!(refused(pki.client(wrong)).contains("neither the name"), "{wrong:?}");
        }
    }

    #[test]
    fn a_certificate_names_the_node_it_is_bound_to() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::init(folder.path(), USUAL_DAYS).unwrap();
        let id = NodeId([7; 16]);
        assert_eq!(pki.node(&["bound"], Some(id)).unwrap().node().unwrap(), Some(id));
        let free = pki.node(&["free"], None).unwrap();
        assert_eq!(free.node().unwrap(), None);
        assert_eq!(node_in(&CertificateDer::from_pem_file(&free.ca).unwrap()), None);
    }

    #[test]
    fn files_that_do_not_belong_together_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::init(folder.path(), USUAL_DAYS).unwrap();
        let (a, b) = (pki.client("a").unwrap(), pki.client("b").unwrap());
        let sentence = |files: TlsFiles| files.client().unwrap_err().to_string();
        assert!(sentence(TlsFiles { key: b.key, ..a.clone() }).contains("b.key: it is not the key of "));
        assert!(sentence(TlsFiles { cert: a.key.clone(), ..a.clone() }).contains("no certificate"));
        assert!(sentence(TlsFiles { key: a.cert.clone(), ..a.clone() }).contains("no private key"));
        assert!(sentence(TlsFiles { ca: folder.path().join("none"), ..a.clone() }).contains("none: "));
        let some = TlsFiles::of(Some(a.cert), None, Some(a.ca)).unwrap_err().to_string();
        assert!(some.ends_with("--tls-key is missing"), "{some}");
    }

    #[test]
    fn whatever_the_bytes_certificates_and_keys_are_refused_or_taken() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::init(folder.path(), USUAL_DAYS).unwrap();
        let id = NodeId([0xa5; 16]);
        let files = pki.node(&["node.example"], Some(id)).unwrap();
        let [pem, key] = [&files.cert, &files.key].map(|path| std::fs::read(path).unwrap());
        let certificate = certificates_in(&pem).unwrap().remove(0);
        assert_eq!(node_in(&certificate), Some(id));
        let roots = |certificates: Vec<CertificateDer<'static>>| {
            let mut roots = RootCertStore::empty();
            certificates.into_iter().map(|certificate| roots.add(certificate).is_ok()).collect::<Vec<_>>()
        };
        let most = |length| 16 * length + 4096;
        let parse = |bytes: &[u8]| certificates_in(bytes).map(|found| (found.len(), roots(found)));
        fuzz("certificate-file", &[pem.clone(), pem.repeat(2)], most, parse, |(count, believed), _| {
            assert_eq!(count, believed.len());
        });
        let bound = |bytes: &[u8]| node_in(&CertificateDer::from(bytes));
        fuzz("certificate", &[certificate.to_vec()], most, bound, |node, bytes| {
            let uri = format!("{NODE_URI}{node}");
            assert!(bytes.windows(uri.len()).any(|window| window == uri.as_bytes()));
        });
        let secret = |bytes: &[u8]| PrivateKeyDer::from_pem_slice(bytes).ok();
        let provider = rustls::crypto::ring::default_provider();
        fuzz("key-file", &[key], most, secret, |key, _| {
            let _ = provider.key_provider.load_private_key(key);
        });
    }
}
