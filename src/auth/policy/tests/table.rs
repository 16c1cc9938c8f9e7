//! Authorization cases, one per row, for the default policies and for a company's.

use super::{Asked, Policies};
use crate::auth::{Identity, Mode};

fn who(name: &str) -> Identity {
    let identity = |mode, name: &str, groups: &[&str]| {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Identity::new(mode, name, groups).expect("names")
    };
    match name {
        "nobody" => Identity::anonymous(),
        "ann" => identity(Mode::Token, "ann", &["developers"]),
        "job" => identity(Mode::Jwt, "job", &["workers"]),
        "olga" => identity(Mode::Jwt, "olga", &["auditors", "break-glass", "workers"]),
        "pay" => identity(Mode::Mtls, "spiffe://corp/pay", &[]),
        "pay by token" => identity(Mode::Token, "spiffe://corp/pay", &[]),
        "root" => identity(Mode::Mtls, "root", &["break-glass"]),
        "root by token" => identity(Mode::Token, "root", &["break-glass"]),
        "team" => identity(Mode::Kubernetes, "team/a", &["system:serviceaccounts:web"]),
        _ => panic!("nobody is {name}"),
    }
}

/// Identity, action, resource, candidate, current leader, and the expected result with the deciding policies.
type Case = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    Result<&'static str, &'static str>,
);

fn holds(policies: &Policies, cases: &[Case]) {
    for case in cases {
        let (name, action, resource, candidate, leader, expected) = *case;
        let asked = Asked::new(who(name), action, resource, candidate, leader);
        let decision = policies.decide(&asked.question());
        let decided_by = decision.policies().join(" ");
        let expected = (
            expected.is_ok(),
            expected.unwrap_or_else(|by| by).to_owned(),
        );
        assert_eq!((decision.allowed(), decided_by), expected, "{case:?}");
        assert!(decision.errors().is_empty(), "{case:?}: {decision:?}");
    }
}

/// No policy permits it.
const NONE: Result<&str, &str> = Err("");

#[test]
#[rustfmt::skip]
fn the_default_policies() {
    const READ: Result<&str, &str> = Ok("default-read");
    const OWN: Result<&str, &str> = Ok("default-own-candidates");
    const OVER: Result<&str, &str> = Ok("default-own-handover");
    let cases = [
        ("nobody", "read", "default/e", "", "", READ),
        ("nobody", "read", "agent", "", "", READ),
        ("nobody", "list", "kind batch", "", "", READ),
        ("nobody", "listKinds", "agent", "", "", READ),
        ("nobody", "verify", "default/e", "", "", READ),
        ("nobody", "observe", "default/e", "", "", READ),
        ("nobody", "observe", "kind batch", "", "", READ),
        ("nobody", "observe", "agent", "", "", READ),
        ("nobody", "pods", "deployment web/shop", "", "", READ),
        ("nobody", "pods", "pod web/shop-1", "", "", READ),
        ("nobody", "campaign", "default/e", "anonymous", "", NONE),
        ("nobody", "extend", "default/e", "anonymous/1", "", NONE),
        ("nobody", "handover", "default/e", "ann", "anonymous", NONE),
        ("nobody", "admin", "agent", "", "", NONE),
        ("ann", "read", "payments/e", "", "", READ),
        ("ann", "campaign", "default/e", "ann", "", OWN),
        ("ann", "campaign", "default/e", "ann/1", "", OWN),
        ("ann", "campaign", "default/e", "ann/1/2", "", OWN),
        ("ann", "campaign", "default/e", "ann/", "", OWN),
        ("ann", "campaign", "default/e", "anna", "", NONE),
        ("ann", "campaign", "default/e", "ann-1", "", NONE),
        ("ann", "campaign", "default/e", "an", "", NONE),
        ("ann", "campaign", "default/e", "/ann", "", NONE),
        ("ann", "campaign", "default/e", "Ann", "", NONE),
        ("ann", "campaign", "default/e", "bob/ann", "", NONE),
        ("ann", "extend", "default/e", "ann/1", "", OWN),
        ("ann", "extend", "default/e", "bob", "", NONE),
        ("ann", "resign", "default/e", "ann", "", OWN),
        ("ann", "resign", "default/e", "bob", "", NONE),
        ("ann", "handover", "default/e", "bob", "ann", OVER),
        ("ann", "handover", "default/e", "bob", "ann/1", OVER),
        ("ann", "handover", "default/e", "ann", "bob", NONE),
        ("ann", "handover", "default/e", "ann", "", OVER),
        ("ann", "handover", "default/e", "bob", "", NONE),
        ("ann", "forceHandover", "default/e", "ann", "ann", NONE),
        ("ann", "admin", "agent", "", "", NONE),
        ("pay", "campaign", "default/e", "spiffe://corp/pay", "", OWN),
        ("pay", "campaign", "default/e", "spiffe://corp/pay/api", "", OWN),
        ("pay", "campaign", "default/e", "spiffe://corp", "", NONE),
        ("pay", "campaign", "default/e", "spiffe://corp/other", "", NONE),
        ("team", "extend", "default/e", "team/a/7", "", OWN),
        ("team", "extend", "default/e", "team/b", "", NONE),
        ("root", "forceHandover", "default/e", "root", "ann", NONE),
    ];
    holds(&Policies::default(), &cases);
}

#[test]
#[rustfmt::skip]
fn the_policies_of_a_company() {
    const OWN: Result<&str, &str> = Ok("own");
    const TEAM: Result<&str, &str> = Ok("hand-over-within-the-team");
    const FROZEN: Result<&str, &str> = Err("frozen");
    const NEVER: Result<&str, &str> = Err("auditors-act-never");
    const CERTIFICATE: Result<&str, &str> = Err("payments-need-certificates");
    let cases = [
        // An identity outside the company.
        ("nobody", "read", "default/e", "", "", NONE),
        ("nobody", "list", "kind default", "", "", NONE),
        ("nobody", "listKinds", "agent", "", "", NONE),
        ("nobody", "verify", "default/e", "", "", NONE),
        ("nobody", "observe", "default/e", "", "", NONE),
        ("nobody", "observe", "kind batch", "", "", NONE),
        ("nobody", "observe", "agent", "", "", NONE),
        ("nobody", "campaign", "default/e", "anonymous", "", NONE),
        // A developer.
        ("ann", "read", "default/e", "", "", Ok("developers-read")),
        ("ann", "read", "agent", "", "", Ok("developers-read")),
        ("ann", "read", "payments/e", "", "", NONE),
        ("ann", "list", "kind batch", "", "", Ok("developers-read")),
        ("ann", "list", "kind payments", "", "", NONE),
        ("ann", "pods", "deployment web/shop", "", "", NONE),
        ("ann", "campaign", "default/e", "ann/laptop", "", OWN),
        ("ann", "campaign", "batch/nightly", "worker-1", "", NONE),
        ("ann", "campaign", "payments/e", "ann", "", CERTIFICATE),
        ("ann", "forceHandover", "default/e", "ann", "bob", NONE),
        // A worker of the batch.
        ("job", "campaign", "batch/nightly", "worker-1", "", Ok("workers")),
        ("job", "campaign", "batch/nightly", "worker-", "", Ok("workers")),
        ("job", "campaign", "batch/nightly", "worker", "", NONE),
        ("job", "campaign", "batch/nightly", "my-worker-1", "", NONE),
        ("job", "campaign", "batch/nightly", "job", "", OWN),
        ("job", "campaign", "batch/yearend", "worker-1", "", NONE),
        ("job", "campaign", "batches/nightly", "worker-1", "", NONE),
        ("job", "extend", "batch/weekly", "worker-1", "", Ok("workers")),
        ("job", "resign", "batch/weekly", "worker-1", "", Ok("workers")),
        ("job", "handover", "batch/weekly", "worker-2", "worker-1", NONE),
        ("job", "read", "batch/weekly", "", "", NONE),
        // Frozen elections.
        ("ann", "campaign", "legacy/e", "ann", "", FROZEN),
        ("ann", "extend", "legacy/e", "ann", "", OWN),
        ("ann", "resign", "legacy/e", "ann", "", OWN),
        ("team", "handover", "legacy/e", "team/b", "team/a", FROZEN),
        ("root", "forceHandover", "legacy/e", "root", "ann", FROZEN),
        ("ann", "read", "legacy/e", "", "", Ok("developers-read")),
        // An auditor with too many groups.
        ("olga", "read", "payments/e", "", "", Ok("auditors-read")),
        ("olga", "list", "kind payments", "", "", Ok("auditors-read")),
        ("olga", "pods", "pod web/shop-1", "", "", Ok("auditors-read")),
        ("olga", "campaign", "default/e", "olga", "", NEVER),
        ("olga", "campaign", "batch/nightly", "worker-1", "", NEVER),
        ("olga", "campaign", "payments/e", "olga", "", Err("auditors-act-never payments-need-certificates")),
        ("olga", "forceHandover", "default/e", "olga", "ann", NEVER),
        ("olga", "admin", "agent", "", "", NEVER),
        // Payments.
        ("pay", "campaign", "payments/e", "spiffe://corp/pay/api", "", OWN),
        ("pay", "extend", "payments/e", "spiffe://corp/pay", "", OWN),
        ("pay", "campaign", "payments/e", "spiffe://corp/other", "", NONE),
        ("pay by token", "campaign", "payments/e", "spiffe://corp/pay", "", CERTIFICATE),
        ("pay by token", "campaign", "default/e", "spiffe://corp/pay", "", OWN),
        ("pay", "read", "payments/e", "", "", NONE),
        // A team.
        ("team", "handover", "default/e", "team/b", "team/a", TEAM),
        ("team", "handover", "default/e", "team", "team/a/1", TEAM),
        ("team", "handover", "default/e", "ann", "team/a", NONE),
        ("team", "handover", "default/e", "teams", "team/a", NONE),
        ("team", "handover", "default/e", "team/a", "team/b", NONE),
        ("team", "handover", "default/e", "team/a", "", NONE),
        ("team", "pods", "deployment web/shop", "", "", Ok("web-pods")),
        ("team", "pods", "pod web/shop-1", "", "", Ok("web-pods")),
        ("team", "pods", "deployment websites/shop", "", "", NONE),
        // Emergencies.
        ("root", "forceHandover", "default/e", "ann", "bob", Ok("break-glass")),
        ("root", "forceHandover", "payments/e", "ann", "", Ok("break-glass")),
        ("root", "admin", "agent", "", "", Ok("break-glass")),
        ("root", "read", "default/e", "", "", NONE),
        ("root by token", "forceHandover", "default/e", "ann", "bob", NONE),
        ("root by token", "forceHandover", "payments/e", "ann", "", CERTIFICATE),
        ("root by token", "admin", "agent", "", "", NONE),
    ];
    let policies = Policies::new([("company.cedar", include_str!("company.cedar"))]).expect("valid");
    assert!(policies.warnings().is_empty(), "{:?}", policies.warnings());
    holds(&policies, &cases);
}
