//! Where agents keep their leases, as settings.

use super::{Agent, Cluster, Proxy, Redis, Sentinels};

const URLS: &str = "EA_REDIS_URLS";
const MODE: &str = "EA_REDIS_MODE";

/// Servers that an agent can be configured to use.
pub(crate) trait Place {
    fn settings(&self) -> Vec<(&'static str, String)>;
}

/// The agent's own memory.
pub(crate) struct InProcess;

impl Place for InProcess {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![("EA_STORE", "memory".to_owned())]
    }
}

impl Place for Redis {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![(URLS, self.url())]
    }
}

impl Place for Proxy {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![(URLS, self.url())]
    }
}

impl Place for [Redis] {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![(URLS, joined(self, Redis::url))]
    }
}

impl Place for [&Redis] {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![(URLS, joined(self, |server| server.url()))]
    }
}

impl Place for Sentinels {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            (MODE, "failover".to_owned()),
            ("EA_REDIS_MASTER", self.name().to_owned()),
            (URLS, self.urls()),
        ]
    }
}

impl Place for Cluster {
    fn settings(&self) -> Vec<(&'static str, String)> {
        std::slice::from_ref(self).settings()
    }
}

impl Place for [Cluster] {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            (MODE, "cluster".to_owned()),
            (URLS, joined(self, Cluster::url)),
        ]
    }
}

fn joined<T>(servers: &[T], url: impl Fn(&T) -> String) -> String {
    let urls: Vec<_> = servers.iter().map(url).collect();
    urls.join(",")
}

impl Agent {
    /// An agent on these servers, with settings besides.
    pub(crate) async fn on(place: &(impl Place + ?Sized), settings: &[(&str, &str)]) -> Self {
        let own = place.settings();
        let own = own.iter().map(|(name, value)| (*name, value.as_str()));
        let all: Vec<_> = own.chain(settings.iter().copied()).collect();
        Self::start(&all).await
    }
}
