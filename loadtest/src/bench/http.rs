//! Single HTTP requests.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Sends a GET request on a new connection.
///
/// # Errors
/// Returns an error if there is no response.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<(StatusCode, Bytes), String> {
    let failed =
        |error: &dyn std::fmt::Display| format!("cannot get http://{address}{path}: {error}");
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| failed(&error))?;
    let (mut sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    // The request reports errors of the connection.
    tokio::spawn(async move { drop(connection.await) });
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| failed(&error))?;
    let status = answer.status();
    let body = answer.into_body().collect().await;
    Ok((status, body.map_err(|error| failed(&error))?.to_bytes()))
}
