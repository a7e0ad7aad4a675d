//! Mutual TLS between nodes, with the node's number in its certificate.
//!
//! Owns: what is read from the files of `cluster.tls.*`, both ends of a handshake. Promises: a peer is who it says only when its
//! certificate, signed by the one authority, names `node-<number>.<cluster>`; files are read at every connection, so that new
//! ones serve at once; TLS 1.3 only: both ends are ours.
//! Does not know: cards, purposes.

use std::io;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// The files of `cluster.tls.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// `cluster.tls.certificate`
    pub certificate: String,
    /// `cluster.tls.key`
    pub key: String,
    /// `cluster.tls.ca`
    pub ca: String,
}

fn unusable(key: &str, file: &str, cause: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("can not use cluster.tls.{key} '{file}': {cause}"))
}

/// The name in the certificate of a node.
pub(crate) fn node_name(node: u64, cluster: &str) -> String {
    format!("node-{node}.{cluster}")
}

fn server_name(node: u64, cluster: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(node_name(node, cluster)).map_err(io::Error::other)
}

impl TlsFiles {
    fn chain(&self) -> io::Result<Vec<CertificateDer<'static>>> {
        certificates("certificate", &self.certificate)
    }

    fn private_key(&self) -> io::Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|_| unusable("key", &self.key, &"it holds no private key in PEM without password"))
    }

    fn roots(&self) -> io::Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("ca", &self.ca)? {
            roots.add(certificate).map_err(|why| unusable("ca", &self.ca, &why))?;
        }
        Ok(Arc::new(roots))
    }

    fn client(&self) -> io::Result<ClientConfig> {
        let wrong = |why: rustls::Error| unusable("certificate", &self.certificate, &why);
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(wrong)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain()?, self.private_key()?)
            .map_err(wrong)
    }

    fn server(&self) -> io::Result<ServerConfig> {
        let wrong = |why: rustls::Error| unusable("certificate", &self.certificate, &why);
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider))
            .build()
            .map_err(|why| unusable("ca", &self.ca, &why))?;
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(wrong)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain()?, self.private_key()?)
            .map_err(wrong)
    }

    /// Are the files what they should be, and is the certificate this node's?
    ///
    /// # Errors
    /// The first that is not, by key and file.
    pub fn check(&self, node: u64, cluster: &str) -> io::Result<()> {
        self.client()?;
        self.server()?;
        let chain = self.chain()?;
        let leaf = chain.first().ok_or_else(|| unusable("certificate", &self.certificate, &"it is empty"))?;
        names(leaf, node, cluster).map_err(|why| unusable("certificate", &self.certificate, &why))
    }

    /// The handshake as the one who came. The other must be `node`.
    pub(crate) async fn connect(
        &self,
        socket: TcpStream,
        node: u64,
        cluster: &str,
    ) -> io::Result<client::TlsStream<TcpStream>> {
        let config = Arc::new(self.client()?);
        TlsConnector::from(config).connect(server_name(node, cluster)?, socket).await
    }

    /// The handshake as the one who listens. Who came is asked of [`is_node`] when he has said who he is.
    pub(crate) async fn accept(&self, socket: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        TlsAcceptor::from(Arc::new(self.server()?)).accept(socket).await
    }
}

/// Does the certificate of who came name this node?
pub(crate) fn is_node(stream: &server::TlsStream<TcpStream>, node: u64, cluster: &str) -> Result<(), String> {
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(<[_]>::first).ok_or("it showed no certificate")?;
    names(leaf, node, cluster)
}

fn names(leaf: &CertificateDer<'_>, node: u64, cluster: &str) -> Result<(), String> {
    let name = server_name(node, cluster).map_err(|error| error.to_string())?;
    ParsedCertificate::try_from(leaf)
        .and_then(|leaf| rustls::client::verify_server_name(&leaf, &name))
        .map_err(|_| format!("its certificate does not name {}", node_name(node, cluster)))
}

fn certificates(key: &str, file: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let chain = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|why| unusable(key, file, &why))?;
    if chain.is_empty() {
        return Err(unusable(key, file, &"it holds no certificate in PEM"));
    }
    Ok(chain)
}
