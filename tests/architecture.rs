//! Dependencies point one way: between crates, and between the modules of the agent (docs/ARCHITECTURE.md).

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on should say where"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// What each crate must not be built of, by whatever way.
const FORBIDDEN: [(&str, &[&str]); 7] = [
    (
        "election-core",
        &[
            "axum",
            "cedar-policy",
            "election-agent",
            "election-agent-client",
            "election-ctl",
            "election-proto",
            "election-redis",
            "http",
            "hyper",
            "kube",
            "opentelemetry",
            "prost",
            "redis",
            "tonic",
            "tracing-opentelemetry",
        ],
    ),
    (
        "election-redis",
        &[
            "axum",
            "cedar-policy",
            "election-agent",
            "election-agent-client",
            "election-ctl",
            "election-proto",
            "hyper",
            "kube",
            "tonic",
        ],
    ),
    (
        "election-proto",
        &["election-agent", "election-core", "election-redis"],
    ),
    (
        "loadtest",
        &[
            "cedar-policy",
            "election-agent",
            "election-agent-client",
            "election-core",
            "election-ctl",
            "election-redis",
            "kube",
            "redis",
        ],
    ),
    (
        "election-agent-client",
        &[
            "axum",
            "election-agent",
            "election-core",
            "election-proto",
            "election-redis",
        ],
    ),
    (
        "election-ctl",
        &[
            "axum",
            "cedar-policy",
            "election-agent",
            "election-core",
            "election-proto",
            "election-redis",
            "kube",
            "redis",
        ],
    ),
    (
        "test-servers",
        &[
            "election-agent",
            "election-core",
            "election-proto",
            "election-redis",
        ],
    ),
];

/// The core's modules: each may use those that follow it.
const CORE: [&str; 4] = ["board", "election", "lease", "types"];

/// The agent's modules, likewise.
const AGENT: [&str; 23] = [
    "app",
    "cli",
    "output",
    "descriptors",
    "config",
    "stack",
    "outcomes",
    "layers",
    "listener",
    "transport",
    "proto",
    "readiness",
    "auth",
    "kube",
    "telemetry",
    "peer",
    "tls",
    "reload",
    "workers",
    "shutdown",
    "status",
    "endpoint",
    "body",
];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Everything that a crate is built of, without what only its tests and its build script need.
fn built_of(package: &str) -> BTreeSet<String> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none"])
        .args(["--format", "{p}", "--package", package])
        .current_dir(repository(""))
        .output()
        .expect("cargo runs");
    let told = String::from_utf8_lossy(&tree.stderr);
    assert!(tree.status.success(), "cargo tree: {told}");
    let tree = String::from_utf8(tree.stdout).expect("UTF-8");
    let names = tree.lines().filter_map(|line| line.split(' ').next());
    names.map(str::to_owned).collect()
}

#[test]
fn crates_are_built_of_what_they_may_use() {
    for (package, forbidden) in FORBIDDEN {
        let built_of = built_of(package);
        assert!(built_of.contains("tokio") || built_of.contains("prost"));
        for other in forbidden {
            assert!(!built_of.contains(*other), "{package} is built of {other}");
        }
    }
}

/// The files below a directory that have this extension.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory");
            left.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_domain_and_its_nodes_name_no_setting() {
    for package in ["crates/core", "crates/redis"] {
        let of = |extension| files(&repository(package), extension);
        let files = [of("rs"), of("lua"), of("toml")].concat();
        assert!(files.len() > 10, "{package}");
        for file in files {
            let text = fs::read_to_string(&file).expect("text");
            assert!(
                !text.contains("EA_"),
                "{} names a setting: the agent passes it in",
                file.display()
            );
        }
    }
}

/// A module by the names that lead to it from the crate's root.
type Module = Vec<String>;

/// The modules that each module's code below this directory names, tests left out.
fn uses(source: &str) -> BTreeMap<Module, BTreeSet<Module>> {
    let source = repository(source);
    let mut texts = BTreeMap::new();
    for file in files(&source, "rs") {
        let within = file.strip_prefix(&source).expect("below it");
        let names = within.with_extension("");
        let module: Module = names.iter().map(|it| it.display().to_string()).collect();
        let is_test = module.iter().any(|name| name == "tests");
        if !is_test && !["main", "lib"].contains(&&*module[0]) {
            texts.insert(module, fs::read_to_string(&file).expect("text"));
        }
    }
    let modules: BTreeSet<_> = texts.keys().cloned().collect();
    let mut uses = BTreeMap::new();
    for (module, text) in texts {
        let tokens: TokenStream = text.parse().expect("Rust");
        let mut paths = Vec::new();
        walk(tokens, &module, &mut paths);
        let named = paths.into_iter().filter_map(|mut path| {
            // The longest beginning that is a module; the rest is an item of it.
            while !modules.contains(&path) {
                path.pop()?;
            }
            Some(path)
        });
        uses.insert(module, named.collect());
    }
    uses
}

/// Collects the paths that begin with `crate` or `super`, in imports, code and macros alike.
fn walk(tokens: TokenStream, module: &Module, paths: &mut Vec<Module>) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if let Some(end) = test_module(&tokens[at..]) {
            at += end;
            continue;
        }
        match &tokens[at] {
            TokenTree::Ident(ident) if *ident == "mod" => {
                // What is within it is a level lower.
                if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) =
                    (tokens.get(at + 1), tokens.get(at + 2))
                {
                    let within = [&module[..], &[name.to_string()]].concat();
                    walk(body.stream(), &within, paths);
                    at += 2;
                }
            }
            TokenTree::Ident(ident) if *ident == "crate" && goes_on(&tokens, at + 1) => {
                path(&tokens, at + 3, Vec::new(), paths);
            }
            TokenTree::Ident(ident) if *ident == "super" && goes_on(&tokens, at + 1) => {
                let mut parent = module.clone();
                parent.pop();
                path(&tokens, at + 3, parent, paths);
            }
            TokenTree::Group(group) => walk(group.stream(), module, paths),
            _ => {}
        }
        at += 1;
    }
}

/// How many tokens a module of tests takes, if one begins here.
fn test_module(tokens: &[TokenTree]) -> Option<usize> {
    let [
        TokenTree::Punct(mark),
        TokenTree::Group(attribute),
        rest @ ..,
    ] = tokens
    else {
        return None;
    };
    let is_of_tests = attribute.to_string().replace(' ', "") == "[cfg(test)]";
    let is_module = matches!(rest.first(), Some(TokenTree::Ident(ident)) if *ident == "mod");
    (mark.as_char() == '#' && is_of_tests && is_module).then_some(5)
}

fn goes_on(tokens: &[TokenTree], at: usize) -> bool {
    let is_colon = |at| matches!(tokens.get(at), Some(TokenTree::Punct(it)) if it.as_char() == ':');
    is_colon(at) && is_colon(at + 1)
}

/// Follows a path from here, with all its branches.
fn path(tokens: &[TokenTree], mut at: usize, mut begins: Module, paths: &mut Vec<Module>) {
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(ident)) if *ident == "super" => {
                begins.pop();
            }
            Some(TokenTree::Ident(ident)) => begins.push(ident.to_string()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let within: Vec<_> = group.stream().into_iter().collect();
                let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(it) if it.as_char() == ',');
                for branch in within.split(is_comma) {
                    path(branch, 0, begins.clone(), paths);
                }
                return;
            }
            _ => break,
        }
        if !goes_on(tokens, at + 1) {
            break;
        }
        at += 3;
    }
    paths.push(begins);
}

#[test]
fn modules_use_those_that_follow_them() {
    for (source, order) in [("src", &AGENT[..]), ("crates/core/src", &CORE)] {
        let place = |module: &str| {
            let place = order.iter().position(|it| *it == module);
            place
                .ok_or_else(|| format!("{source}/{module}.rs has no place in the order of modules"))
        };
        for (module, used) in uses(source) {
            let own = place(&module[0]).expect("a place");
            for other in used {
                let is_below = place(&other[0]).expect("a place") >= own;
                let (module, other) = (module.join("::"), other.join("::"));
                assert!(is_below, "{module} uses {other}, which is above it");
            }
        }
    }
}

#[test]
fn modules_within_one_form_no_circle() {
    // By the module that both are in.
    let mut edges: BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (module, used) in uses("src") {
        for other in used {
            let same = module.iter().zip(&other).take_while(|(a, b)| a == b);
            let common = same.count();
            // Modules may use what they are made of, and that what they have in common.
            if common > 0 && module.len() > common && other.len() > common {
                let within = edges.entry(module[..common].to_vec()).or_default();
                let named = within.entry(module[common].clone()).or_default();
                named.insert(other[common].clone());
            }
        }
    }
    assert!(edges.len() > 5, "{edges:?}");
    let mut circles = BTreeSet::new();
    for (within, edges) in &edges {
        for module in edges.keys() {
            let (mut reached, mut left) = (BTreeSet::new(), vec![module]);
            while let Some(next) = left.pop() {
                for other in edges.get(next).into_iter().flatten() {
                    if reached.insert(other) {
                        left.push(other);
                    }
                }
            }
            if reached.contains(module) {
                circles.insert(within.join("::"));
            }
        }
    }
    assert!(circles.is_empty(), "{circles:?}");
}
