//! What a request is for, as metrics call it.

use http::Method;

use super::{Area, grpc};

/// What a request is for: few and fixed, whatever paths callers make up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// To campaign.
    Campaign,
    /// To extend a term.
    Extend,
    /// To resign.
    Resign,
    /// To hand over.
    Handover,
    /// To learn who leads.
    Leader,
    /// To list leaders.
    List,
    /// To list pods.
    Pods,
    /// To learn whether the agent works.
    Probe,
    /// Everything else.
    Other,
}

impl Action {
    /// Every action, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Campaign,
        Self::Extend,
        Self::Resign,
        Self::Handover,
        Self::Leader,
        Self::List,
        Self::Pods,
        Self::Probe,
        Self::Other,
    ];

    /// The label's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Campaign => "campaign",
            Self::Extend => "extend",
            Self::Resign => "resign",
            Self::Handover => "handover",
            Self::Leader => "leader",
            Self::List => "list",
            Self::Pods => "pods",
            Self::Probe => "probe",
            Self::Other => "other",
        }
    }

    /// What a request with this method and path is for.
    #[must_use]
    pub fn of(method: &Method, path: &str) -> Self {
        if let Some(rpc) = path.strip_prefix(grpc::ELECTION_PATH) {
            return match rpc {
                "Campaign" => Self::Campaign,
                "ExtendElectedTerm" => Self::Extend,
                "Resign" => Self::Resign,
                "Handover" => Self::Handover,
                "GetLeader" => Self::Leader,
                "ListLeaders" => Self::List,
                "GetPods" => Self::Pods,
                _ => Self::Other,
            };
        }
        let mut segments = path.trim_start_matches('/').split('/');
        match segments.next() {
            Some("election") => match *method {
                Method::POST => Self::Campaign,
                Method::PATCH => Self::Extend,
                Method::DELETE => Self::Resign,
                Method::PUT => Self::Handover,
                Method::GET => Self::Leader,
                _ => Self::Other,
            },
            Some("elections") => Self::List,
            Some("kube") => Self::Pods,
            _ if Area::of(path) == Area::Probes => Self::Probe,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_numbered_in_their_order() {
        for (number, action) in Action::ALL.into_iter().enumerate() {
            assert_eq!(action as usize, number);
        }
    }
    #[test]
    fn made_up_paths_do_not_make_up_actions() {
        let campaign = "/grpc.election_agent.v1.Election/Campaign";
        for (method, path, action) in [
            (Method::POST, "/election/a/b", Action::Campaign),
            (Method::POST, campaign, Action::Campaign),
            (
                Method::POST,
                "/grpc.election_agent.v1.Election/x",
                Action::Other,
            ),
            (Method::GET, "/wp-login.php", Action::Other),
            (Method::OPTIONS, "/election/x", Action::Other),
        ] {
            assert_eq!(Action::of(&method, path), action, "{path}");
        }
    }
}
