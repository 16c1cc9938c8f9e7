//! Where a command is.

use std::{
    env,
    ffi::OsStr,
    fs::File,
    io::Read as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

use crate::failure::Failure;

/// Finds the file of a command as `execvp` does: in PATH, unless its name has a slash.
///
/// # Errors
/// [`Failure::NOT_FOUND`], or [`Failure::NOT_EXECUTABLE`] if what was found may not be executed.
pub(crate) fn find(name: &OsStr) -> Result<PathBuf, Failure> {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/bin:/usr/bin".into());
    find_in(name, &path)
}

fn find_in(name: &OsStr, path: &OsStr) -> Result<PathBuf, Failure> {
    let shown = name.display();
    let candidates: Vec<PathBuf> = match name.as_bytes() {
        [] => Vec::new(),
        bytes if bytes.contains(&b'/') => vec![name.into()],
        _ => env::split_paths(path)
            .map(|directory| directory.join(name))
            .collect(),
    };
    if let Some(found) = candidates.iter().find(|file| is_executable(file)) {
        return match why_not(found) {
            None => Ok(found.clone()),
            Some(why) => Err(Failure::new(
                Failure::NOT_EXECUTABLE,
                format!("{}: {why}", found.display()),
            )),
        };
    }
    match candidates.iter().find(|file| file.exists()) {
        Some(file) if file.is_dir() => Err(Failure::new(
            Failure::NOT_EXECUTABLE,
            format!("{}: a directory", file.display()),
        )),
        Some(file) => Err(Failure::new(
            Failure::NOT_EXECUTABLE,
            format!("{}: not executable: chmod +x makes it so", file.display()),
        )),
        None => Err(Failure::new(
            Failure::NOT_FOUND,
            format!("{shown}: no such command in PATH, and no such file"),
        )),
    }
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && access(file, Access::EXEC_OK).is_ok()
}

/// Why the kernel would not execute the file. C libraries pass an unknown format to a shell, so that a text would
/// run as a script, and any other file would do anything.
fn why_not(file: &Path) -> Option<String> {
    // One that cannot be read may be executed.
    let mut head = Vec::new();
    let file = File::open(file).ok()?;
    file.take(HEAD).read_to_end(&mut head).ok()?;
    let Some(line) = head.strip_prefix(b"#!") else {
        let is_text = !head.contains(&0);
        return is_text
            .then(|| "a script's first line names its interpreter, as in #!/bin/sh".to_owned());
    };
    let line = line.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| byte.is_ascii_whitespace());
    let interpreter = Path::new(OsStr::from_bytes(words.find(|word| !word.is_empty())?));
    (!is_executable(interpreter)).then(|| {
        format!(
            "its interpreter is not there or not executable: {}",
            interpreter.display()
        )
    })
}

/// How much the kernel reads of a file to determine its format.
const HEAD: u64 = 256;

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn looks_as_a_shell_does() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |path: &str, mode| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(&path, "#!/bin/sh\n").expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            path
        };
        let (_, second) = (file("a/tool", 0o644), file("b/tool", 0o755));
        let only = file("a/text", 0o644);
        let path =
            env::join_paths(["a", "b"].map(|name| directory.path().join(name))).expect("a path");
        let code = |name: &str| find_in(name.as_ref(), &path).map_err(|failure| failure.code());
        assert_eq!(code("tool"), Ok(second.clone()));
        assert_eq!(code("text"), Err(Failure::NOT_EXECUTABLE));
        assert_eq!(
            code(only.to_str().expect("text")),
            Err(Failure::NOT_EXECUTABLE)
        );
        assert_eq!(
            code(directory.path().to_str().expect("text")),
            Err(Failure::NOT_EXECUTABLE)
        );
        assert_eq!(code("nothing"), Err(Failure::NOT_FOUND));
        assert_eq!(code("/nothing/there"), Err(Failure::NOT_FOUND));
        assert_eq!(code(""), Err(Failure::NOT_FOUND));
        for content in ["", "echo no first line\n", "#! /no/such/interpreter -x\n"] {
            fs::write(&second, content).expect("written");
            assert_eq!(code("tool"), Err(Failure::NOT_EXECUTABLE), "{content}");
        }
        fs::write(&second, "#! /bin/sh -e\n").expect("written");
        assert_eq!(code("tool"), Ok(second));
    }
}
