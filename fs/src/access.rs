//! By what nodes know this program, and by what it knows them. Nodes inside it need neither.

use std::path::PathBuf;
use std::sync::Arc;

use credentials::{TlsFiles, Token};

use crate::state::Refusal;
use crate::transport::FragmentTransport;
use crate::transport::http::{HttpOptions, HttpTransport};
use crate::transport::objects::ObjectTransport;

/// What was given for it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// With it only `https://` is spoken.
    pub tls: Option<TlsFiles>,
    /// The file with the pool's token.
    pub token_file: Option<PathBuf>,
}

impl Access {
    /// How to speak to nodes with it.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn transport(&self) -> Result<Arc<dyn FragmentTransport>, Refusal> {
        Ok(Arc::new(self.http()?))
    }

    /// How to speak to the nodes of the object store with it.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn object_transport(&self) -> Result<Arc<dyn ObjectTransport>, Refusal> {
        Ok(Arc::new(self.http()?))
    }

    fn http(&self) -> Result<HttpTransport, Refusal> {
        let tls = self.tls.as_ref().map(TlsFiles::client).transpose();
        let tls = tls.map_err(|error| Refusal(error.to_string()))?;
        let token = self.token_file.as_deref().map(Token::read).transpose();
        let token = token.map_err(|error| Refusal(error.to_string()))?;
        Ok(HttpTransport::new(HttpOptions { tls, token, ..HttpOptions::default() }))
    }
}
