//! TLS 1.3 where both sides show a certificate of one CA. There is no other version, and no session is resumed: every
//! connection is checked anew.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::wire::NodeId;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{AlertDescription, CertificateError, ClientConfig, InvalidMessage, RootCertStore, ServerConfig};

use crate::{CredentialsError, read_secret};

/// What stands before a node's identity in a certificate that is bound to it.
pub(crate) const NODE_URI: &str = "urn:avidfs:node:";
/// In every certificate of a node: such a one may ask other nodes for little.
pub(crate) const ROLE_URI: &str = "urn:avidfs:role:node";

/// The three files a program needs to speak TLS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Its certificate, PEM.
    pub cert: PathBuf,
    /// The key of that, PEM.
    pub key: PathBuf,
    /// The certificate of the CA that the other side's must be signed by, PEM.
    pub ca: PathBuf,
}

impl TlsFiles {
    /// All three, or none.
    ///
    /// # Errors
    /// Some are given and others are not.
    pub fn of(
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
        ca: Option<PathBuf>,
    ) -> Result<Option<TlsFiles>, CredentialsError> {
        let given = [("--tls-cert", &cert), ("--tls-key", &key), ("--tls-ca", &ca)];
        let missing = given.iter().find(|(_, file)| file.is_none()).map(|(name, _)| *name);
        match (cert, key, ca) {
            (Some(cert), Some(key), Some(ca)) => Ok(Some(TlsFiles { cert, key, ca })),
            (None, None, None) => Ok(None),
            _ => Err(CredentialsError(format!(
                "--tls-cert, --tls-key and --tls-ca belong together: {} is missing",
                missing.unwrap_or_default()
            ))),
        }
    }

    /// For a node: whoever connects must show a client's certificate of the CA.
    ///
    /// # Errors
    /// A file cannot be used; the sentence names it.
    pub fn server(&self) -> Result<Arc<ServerConfig>, CredentialsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?.into(), provider()).build();
        let verifier = verifier.map_err(|error| CredentialsError::of(&self.ca, error))?;
        let versions = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
        let builder = versions.expect("ring speaks TLS 1.3").with_client_cert_verifier(verifier);
        let config = builder.with_single_cert(self.chain()?, self.private_key()?);
        let mut config = config.map_err(|error| self.mismatch(&error))?;
        config.send_tls13_tickets = 0;
        Ok(config.into())
    }

    /// For a client of nodes.
    ///
    /// # Errors
    /// A file cannot be used; the sentence names it.
    pub fn client(&self) -> Result<Arc<ClientConfig>, CredentialsError> {
        let versions = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
        let builder = versions.expect("ring speaks TLS 1.3").with_root_certificates(self.roots()?);
        let config = builder.with_client_auth_cert(self.chain()?, self.private_key()?);
        let mut config = config.map_err(|error| self.mismatch(&error))?;
        config.resumption = Resumption::disabled();
        Ok(config.into())
    }

    /// The node this certificate is bound to, if it is to one.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn node(&self) -> Result<Option<NodeId>, CredentialsError> {
        Ok(self.chain()?.first().and_then(node_in))
    }

    fn roots(&self) -> Result<RootCertStore, CredentialsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|error| CredentialsError::of(&self.ca, error))?;
        }
        Ok(roots)
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
        certificates(&self.cert)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, CredentialsError> {
        let text = read_secret(&self.key)?;
        PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| CredentialsError::of(&self.key, "there is no private key in it"))
    }

    fn mismatch(&self, error: &rustls::Error) -> CredentialsError {
        match error {
            rustls::Error::InconsistentKeys(_) => {
                CredentialsError::of(&self.key, format_args!("it is not the key of {}", self.cert.display()))
            }
            error => CredentialsError::of(&self.cert, error),
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    ring::default_provider().into()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let text = std::fs::read(path).map_err(|error| CredentialsError::of(path, error))?;
    certificates_in(&text).ok_or_else(|| CredentialsError::of(path, "there is no certificate in it"))
}

pub(crate) fn certificates_in(text: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    found.ok().filter(|found| !found.is_empty())
}

/// The node a certificate is bound to, if it is to one. It says nothing about whether the certificate is to be believed.
pub fn node_in(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    certificate.valid_uri_names().find_map(|uri| uri.strip_prefix(NODE_URI)?.parse().ok())
}

/// Whether a certificate is a node's. It says nothing about whether the certificate is to be believed.
pub fn is_a_nodes(certificate: &CertificateDer<'_>) -> bool {
    let certificate = webpki::EndEntityCert::try_from(certificate);
    certificate.is_ok_and(|certificate| certificate.valid_uri_names().any(|uri| uri == ROLE_URI))
}

/// What went wrong between a client and a node, as a sentence about the node that says what to do; none if it is no
/// matter of TLS.
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let error = causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>())?;
    Some(match error {
        rustls::Error::InvalidCertificate(wrong) => explain_certificate(wrong),
        rustls::Error::AlertReceived(alert) => explain_alert(*alert),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it does not speak TLS: give it --tls-cert, --tls-key and --tls-ca, or name it by http:// and leave \
             --tls-ca out"
                .to_owned()
        }
        error => format!("TLS: {error}"),
    })
}

fn explain_certificate(wrong: &CertificateError) -> String {
    match wrong {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is of another CA than --tls-ca: give both sides certificates of one".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired: make it a new one with avidfs pki node".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: look at the clocks of both hosts".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "its certificate is for {}, and not for {}: make it one with avidfs pki node",
            presented.join(", "),
            expected.to_str()
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not a node's: make it one with avidfs pki node".to_owned()
        }
        wrong => format!("its certificate cannot be used: {wrong}"),
    }
}

fn explain_alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "it wants to know who asks: give --tls-cert and --tls-key".to_owned()
        }
        AlertDescription::CertificateExpired => {
            "it says that the certificate of --tls-cert has expired: make a new one with avidfs pki client"
                .to_owned()
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it believes another CA than the one of --tls-cert: give both sides certificates of one"
                .to_owned()
        }
        alert => format!("it does not take the certificate of --tls-cert ({alert:?}): is it a client's?"),
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    // An io::Error hands on the source of what it wraps, and not what it wraps.
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<std::io::Error>() {
        Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    })
}
