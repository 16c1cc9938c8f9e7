//! The exporters for both transports of the OpenTelemetry protocol.

use std::collections::HashMap;

use http::HeaderMap;
use opentelemetry_otlp::{
    Compression, Protocol as Otlp, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
    WithTonicConfig as _,
    tonic_types::{
        metadata::MetadataMap,
        transport::{Certificate, ClientTlsConfig},
    },
};
use opentelemetry_sdk::{Resource, trace::SpanExporter as _};

use super::{Destination, Protocol, StartError};
use crate::{causes, tls};

/// Creates an exporter to the destination. It connects on the first export.
pub(super) fn exporter(
    destination: &Destination,
    resource: &Resource,
) -> Result<SpanExporter, StartError> {
    let mut exporter = match destination.protocol {
        Protocol::Grpc => grpc(destination),
        Protocol::Http => http(destination),
    }?;
    exporter.set_resource(resource);
    Ok(exporter)
}

fn unusable(error: &dyn std::error::Error) -> StartError {
    StartError(format!(
        "OTEL_EXPORTER_OTLP_ENDPOINT: spans cannot be sent there: {}",
        causes(error)
    ))
}

fn grpc(destination: &Destination) -> Result<SpanExporter, StartError> {
    let headers: HashMap<_, _> = destination.headers.clone().into_iter().collect();
    let headers = HeaderMap::try_from(&headers).map_err(|error| unusable(&error))?;
    let mut builder = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(destination.endpoint.as_str())
        .with_timeout(destination.timeout)
        .with_metadata(MetadataMap::from_headers(headers));
    if destination.endpoint.scheme() == "https" {
        let trusted = match &destination.authorities {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        builder = builder.with_tls_config(trusted);
    }
    if destination.gzip {
        builder = builder.with_compression(Compression::Gzip);
    }
    builder.build().map_err(|error| unusable(&error))
}

fn http(destination: &Destination) -> Result<SpanExporter, StartError> {
    // Nothing else may have installed a provider yet.
    tls::install_provider();
    let mut client = reqwest::Client::builder().timeout(destination.timeout);
    let authorities = match &destination.authorities {
        Some(pem) => Some(reqwest::Certificate::from_pem_bundle(pem)),
        // Avoids loading the system's authorities, which takes time.
        None if destination.endpoint.scheme() == "http" => Some(Ok(Vec::new())),
        None => None,
    };
    if let Some(authorities) = authorities {
        client = client.tls_certs_only(authorities.map_err(|error| unusable(&error))?);
    }
    let mut builder = SpanExporter::builder()
        .with_http()
        .with_http_client(client.build().map_err(|error| unusable(&error))?)
        .with_endpoint(destination.endpoint.as_str())
        .with_protocol(Otlp::HttpBinary)
        .with_timeout(destination.timeout)
        .with_headers(destination.headers.clone().into_iter().collect());
    if destination.gzip {
        builder = builder.with_compression(Compression::Gzip);
    }
    builder.build().map_err(|error| unusable(&error))
}
