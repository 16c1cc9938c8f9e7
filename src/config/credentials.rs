//! Hides credentials in values.

use election_redis::Server;
use url::Url;

/// Returns the URLs without their passwords. An entry that is not the URL of a server is hidden completely.
pub(super) fn hide_credentials(urls: &str) -> String {
    let hidden: Vec<_> = urls
        .split(',')
        .map(|url| match Url::parse(url.trim()) {
            Ok(mut url)
                if Server::from_url(url.as_str(), None).is_ok()
                    || Server::members_from_url(url.as_str(), None).is_ok() =>
            {
                if url.password().is_some() && url.set_password(Some("***")).is_err() {
                    return "***".to_owned();
                }
                url.to_string()
            }
            _ => "***".to_owned(),
        })
        .collect();
    hidden.join(",")
}
