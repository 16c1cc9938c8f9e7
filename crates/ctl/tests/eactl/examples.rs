//! The examples of `deploy/kubernetes/examples`.

use std::{fs, path::Path};

use serde_json::Value;

/// The containers of all examples, with the file that they are in.
fn containers() -> Vec<(String, Value)> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kubernetes/examples");
    let mut containers = Vec::new();
    for entry in fs::read_dir(examples).expect("there") {
        let path = entry.expect("a file").path();
        let text = fs::read_to_string(&path).expect("text");
        let object: Value = yaml_serde::from_str(&text).expect("YAML");
        let pod = &object["spec"]["template"]["spec"];
        for list in ["initContainers", "containers"] {
            for container in pod[list].as_array().expect("a list") {
                containers.push((path.display().to_string(), container.clone()));
            }
        }
    }
    containers
}

#[test]
fn commands_in_examples_are_ones_that_the_program_takes() {
    let mut names = Vec::new();
    for (file, container) in containers() {
        let Some(command) = container["command"].as_array() else {
            continue;
        };
        let command: Vec<_> = command
            .iter()
            .map(|word| word.as_str().expect("text"))
            .collect();
        assert!(command[0].ends_with("/eactl"), "{file}");
        let matches = election_ctl::eactl().try_get_matches_from(&command);
        let matches = matches.unwrap_or_else(|error| panic!("{file}: {error}"));
        let (name, given) = matches.subcommand().expect("a command");
        // Variables that are referred to are set.
        let set = container["env"].as_array().cloned().unwrap_or_default();
        let is_set = |name: &str| set.iter().any(|variable| variable["name"] == name);
        if name != "install" {
            assert_eq!(
                given.get_one::<String>("candidate").map(String::as_str),
                Some("$(POD_NAME)")
            );
            assert!(is_set("POD_NAME") && is_set("ELECTION_AGENT_URL"), "{file}");
        }
        names.push(name.to_owned());
    }
    names.sort_unstable();
    assert_eq!(names, ["elect", "install", "run"]);
}
