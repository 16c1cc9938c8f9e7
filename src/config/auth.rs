//! Authentication and authorization.

use std::time::Duration;

use strum::VariantNames;

use super::names::{
    EA_AUTH_JWT_AUDIENCE, EA_AUTH_JWT_CA_FILE, EA_AUTH_JWT_GROUPS_CLAIM, EA_AUTH_JWT_ISSUER,
    EA_AUTH_JWT_JWKS_FILE, EA_AUTH_JWT_JWKS_URL, EA_AUTH_JWT_LEEWAY, EA_AUTH_JWT_NAME_CLAIM,
    EA_AUTH_JWT_REFRESH, EA_AUTH_KUBERNETES_AUDIENCES, EA_AUTH_KUBERNETES_CACHE_TTL, EA_AUTH_MODES,
    EA_AUTH_POLICY_DIR, EA_AUTH_PUBLIC, EA_AUTH_TOKEN_FILE, EA_TLS_CLIENT_CA_FILE, Variable,
};
use super::{Setting, list_setting, setting, values::Reader};
use crate::{
    auth::{
        Mode,
        jwt::{
            Expected,
            keys::{self, Origin, Remote},
        },
        policy::Directory,
        tokens,
    },
    endpoint::Area,
};

pub(super) const SETTINGS: &[Setting] = &[
    list_setting(
        EA_AUTH_MODES,
        "none",
        "how callers prove who they are, one or more of, comma separated: `none`: not at all; `token`: bearer tokens that EA_AUTH_TOKEN_FILE lists; `jwt`: JSON Web Tokens of EA_AUTH_JWT_ISSUER; `mtls`: client certificates (EA_TLS_CLIENT_CA_FILE); `kubernetes`: tokens that the Kubernetes API server reviews",
    ),
    list_setting(
        EA_AUTH_PUBLIC,
        "probes,metrics,docs,ui",
        "what is served without authentication, comma separated: `probes`, `metrics`, `docs` (OpenAPI, Swagger UI, gRPC reflection), `ui` (the dashboard's files, which show nothing by themselves, and `/`); `nothing`: none of these",
    ),
    setting(
        EA_AUTH_TOKEN_FILE,
        "",
        "`token`: file of the tokens' hashes, names and groups, one a line, as `election-agent token new` makes them; read again when it changes",
    ),
    setting(
        EA_AUTH_JWT_ISSUER,
        "",
        "`jwt`: the issuer that tokens must name (`iss`)",
    ),
    list_setting(
        EA_AUTH_JWT_AUDIENCE,
        "",
        "`jwt`: accepted audiences, comma separated; a token's `aud` must name one",
    ),
    setting(
        EA_AUTH_JWT_JWKS_FILE,
        "",
        "`jwt`: file of the issuer's public keys (JWKS; RS256, ES256 or EdDSA), read again when it changes",
    ),
    setting(
        EA_AUTH_JWT_JWKS_URL,
        "",
        "`jwt`: URL of the issuer's public keys instead; `https`, or `http` on this host",
    ),
    setting(
        EA_AUTH_JWT_CA_FILE,
        "",
        "PEM file of the certificate authorities trusted for that URL, instead of the system's",
    ),
    setting(
        EA_AUTH_JWT_REFRESH,
        "5m",
        "how often that URL is fetched for newer keys (10s to 24h); also when a token names an unknown key",
    ),
    setting(
        EA_AUTH_JWT_LEEWAY,
        "30s",
        "`jwt`: how far the issuer's clock may be from the agent's (0s to 5m)",
    ),
    setting(
        EA_AUTH_JWT_NAME_CLAIM,
        "sub",
        "`jwt`: the claim that names the caller",
    ),
    setting(
        EA_AUTH_JWT_GROUPS_CLAIM,
        "groups",
        "`jwt`: the claim that has the caller's groups, an array or a text with spaces between",
    ),
    list_setting(
        EA_AUTH_KUBERNETES_AUDIENCES,
        "",
        "`kubernetes`: accepted audiences of tokens, comma separated, one suffices; none: the API server's own",
    ),
    setting(
        EA_AUTH_KUBERNETES_CACHE_TTL,
        "1m",
        "`kubernetes`: how long the API server's verdict on a token is cached (1s to 1h)",
    ),
    setting(
        EA_AUTH_POLICY_DIR,
        "",
        "directory of Cedar policies (`*.cedar`) that say who may do what, read again when it changes; none: every authenticated identity may read everything, and act only for candidates that equal its name or start with its name and `/`",
    ),
];

/// Configuration of authentication and authorization.
#[derive(Debug, Clone)]
pub struct Auth {
    /// Whether callers without a credential are admitted as anonymous.
    pub anonymous: bool,
    /// Whether client certificates authenticate callers.
    pub mtls: bool,
    /// The public areas.
    pub public: Vec<Area>,
    /// The file of bearer tokens.
    pub tokens: Option<tokens::File>,
    /// JSON Web Tokens: the required claims, and the source of the keys.
    pub jwt: Option<(Expected, Origin)>,
    /// Reviews of tokens by Kubernetes.
    pub kubernetes: Option<Reviews>,
    /// The operator's policies, which replace the default ones; valid when the configuration was read.
    pub policies: Option<Directory>,
}

/// Configuration of token reviews by Kubernetes.
#[derive(Debug, Clone)]
pub struct Reviews {
    /// The accepted audiences of tokens; empty for the API server's own.
    pub audiences: Vec<String>,
    /// How long a verdict is cached.
    pub remember: Duration,
}

impl Auth {
    /// Returns whether callers must authenticate.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.mtls || self.tokens.is_some() || self.jwt.is_some() || self.kubernetes.is_some()
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let modes = reader.with(EA_AUTH_MODES, modes);
        let public = reader.with(EA_AUTH_PUBLIC, public);
        let on = |mode| modes.as_ref().is_some_and(|modes| modes.contains(&mode));
        // If the modes are invalid, it is unknown which settings are unused, so none is a mistake.
        let unused = |mode| modes.is_some() && !on(mode);
        let (token, jwt, kubernetes) = (on(Mode::Token), on(Mode::Jwt), on(Mode::Kubernetes));
        for (mode, variables) in [
            (Mode::Token, &[EA_AUTH_TOKEN_FILE][..]),
            (Mode::Jwt, &JWT),
            (
                Mode::Kubernetes,
                &[EA_AUTH_KUBERNETES_AUDIENCES, EA_AUTH_KUBERNETES_CACHE_TTL],
            ),
        ] {
            for variable in variables.iter().filter(|_| unused(mode)) {
                if reader.is_given(*variable) {
                    let mode = mode.name();
                    reader.mistake(
                        variable,
                        format!("it is not used: add {mode} to EA_AUTH_MODES, or leave this out"),
                    );
                }
            }
        }
        if on(Mode::Mtls) && reader.raw(EA_TLS_CLIENT_CA_FILE).is_empty() {
            reader.mistake(
                EA_AUTH_MODES,
                "mtls needs an authority that vouches for client certificates: set EA_TLS_CLIENT_CA_FILE",
            );
        }
        let tokens = token.then(|| read_tokens(reader));
        let jwt = read_jwt(reader, jwt);
        let reviews = read_reviews(reader);
        let policies = reader.path(EA_AUTH_POLICY_DIR).map(Directory);
        if let Some(policies) = &policies {
            reader.files(policies);
        }
        Some(Self {
            anonymous: on(Mode::None),
            mtls: on(Mode::Mtls),
            public: public?,
            tokens: tokens.flatten(),
            jwt,
            kubernetes: reviews.filter(|_| kubernetes),
            policies,
        })
    }
}

const JWT: [Variable; 9] = [
    EA_AUTH_JWT_ISSUER,
    EA_AUTH_JWT_AUDIENCE,
    EA_AUTH_JWT_JWKS_FILE,
    EA_AUTH_JWT_JWKS_URL,
    EA_AUTH_JWT_CA_FILE,
    EA_AUTH_JWT_REFRESH,
    EA_AUTH_JWT_LEEWAY,
    EA_AUTH_JWT_NAME_CLAIM,
    EA_AUTH_JWT_GROUPS_CLAIM,
];

fn modes(text: &str) -> Result<Vec<Mode>, String> {
    let mode = |mode: &str| {
        mode.parse().map_err(|_| {
            let names = Mode::VARIANTS.join(", ");
            format!("{mode:?} is no mode: give one or more of {names}, comma separated")
        })
    };
    text.split(',').map(str::trim).map(mode).collect()
}

fn public(text: &str) -> Result<Vec<Area>, String> {
    if text == "nothing" {
        return Ok(Vec::new());
    }
    let area = |name: &str| {
        let named = Area::NAMED.iter().find(|(known, _)| *known == name.trim());
        named.map(|(_, area)| *area).ok_or_else(|| {
            "give one or more of probes, metrics, docs, ui, comma separated, or nothing".to_owned()
        })
    };
    text.split(',').map(area).collect()
}

fn read_tokens(reader: &mut Reader<'_>) -> Option<tokens::File> {
    let Some(path) = reader.path(EA_AUTH_TOKEN_FILE) else {
        reader.mistake(
            EA_AUTH_TOKEN_FILE,
            "EA_AUTH_MODES has token: name the file that lists the tokens",
        );
        return None;
    };
    let file = tokens::File(path);
    reader.files(&file);
    Some(file)
}

/// Reads the JWT settings. Reports mistakes even if the mode is off.
fn read_jwt(reader: &mut Reader<'_>, used: bool) -> Option<(Expected, Origin)> {
    let minute = Duration::from_secs(60);
    let refresh = reader.duration(EA_AUTH_JWT_REFRESH, minute / 6, 24 * 60 * minute);
    let leeway = reader.duration(EA_AUTH_JWT_LEEWAY, Duration::ZERO, 5 * minute);
    if !used {
        return None;
    }
    let issuer = reader.raw(EA_AUTH_JWT_ISSUER).to_owned();
    if issuer.is_empty() {
        reader.mistake(
            EA_AUTH_JWT_ISSUER,
            "EA_AUTH_MODES has jwt: give the issuer of the tokens",
        );
    }
    let audiences = reader.list(EA_AUTH_JWT_AUDIENCE);
    if audiences.is_empty() {
        reader.mistake(
            EA_AUTH_JWT_AUDIENCE,
            "EA_AUTH_MODES has jwt: give the audience of tokens for this agent, so that those for others are refused",
        );
    }
    let ca = reader.path(EA_AUTH_JWT_CA_FILE);
    let file = reader.path(EA_AUTH_JWT_JWKS_FILE);
    let url = reader.raw(EA_AUTH_JWT_JWKS_URL).to_owned();
    let origin = match (file, url.is_empty()) {
        (Some(path), true) => {
            for variable in [EA_AUTH_JWT_CA_FILE, EA_AUTH_JWT_REFRESH] {
                if reader.is_given(variable) {
                    reader.mistake(
                        variable,
                        "it is for EA_AUTH_JWT_JWKS_URL, which is not set: leave it out",
                    );
                }
            }
            let file = keys::File(path);
            reader.files(&file);
            Some(Origin::File(file))
        }
        (None, false) => {
            let url = reader.with(EA_AUTH_JWT_JWKS_URL, Remote::parse);
            let remote = Remote {
                url: url?,
                ca,
                refresh: refresh?,
            };
            if let Err(mistake) = remote.client() {
                reader.mistake(mistake.variable, mistake.what);
            }
            Some(Origin::Remote(remote))
        }
        (None, true) | (Some(_), false) => {
            reader.mistake(
                EA_AUTH_JWT_JWKS_FILE,
                "EA_AUTH_MODES has jwt: give the issuer's keys, by this or by EA_AUTH_JWT_JWKS_URL, not by both",
            );
            None
        }
    };
    let expected = Expected {
        issuer,
        audiences,
        leeway: leeway?,
        name_claim: reader.raw(EA_AUTH_JWT_NAME_CLAIM).to_owned(),
        groups_claim: reader.raw(EA_AUTH_JWT_GROUPS_CLAIM).to_owned(),
    };
    Some((expected, origin?))
}

fn read_reviews(reader: &mut Reader<'_>) -> Option<Reviews> {
    let remember = reader.duration(
        EA_AUTH_KUBERNETES_CACHE_TTL,
        Duration::from_secs(1),
        Duration::from_secs(3600),
    );
    Some(Reviews {
        audiences: reader.list(EA_AUTH_KUBERNETES_AUDIENCES),
        remember: remember?,
    })
}
