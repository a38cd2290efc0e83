//! By what nodes know this program, and by what it knows them. Nodes inside it need neither.

use std::sync::Arc;

use credentials::TlsFiles;

use crate::state::Refusal;
use crate::transport::FragmentTransport;
use crate::transport::http::{HttpOptions, HttpTransport};

/// What was given for it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// With it only `https://` is spoken.
    pub tls: Option<TlsFiles>,
}

impl Access {
    /// How to speak to nodes with it.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn transport(&self) -> Result<Arc<dyn FragmentTransport>, Refusal> {
        let tls = self.tls.as_ref().map(TlsFiles::client).transpose();
        let tls = tls.map_err(|error| Refusal(error.to_string()))?;
        Ok(Arc::new(HttpTransport::new(HttpOptions { tls, ..HttpOptions::default() })))
    }
}
