//! `--install`: a link for each plugin.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::PLUGINS;

/// Makes a link to this executable in `dir` under each plugin's name. Links are replaced; a file of another maker stays
/// and is an error, told before anything is changed.
pub(crate) fn install(dir: &Path) -> Result<String, String> {
    let failed =
        |path: &Path, error: &io::Error| format!("skiff-cni: {}: {error}\n", path.display());
    let executable =
        std::env::current_exe().map_err(|error| failed(Path::new("/proc/self/exe"), &error))?;
    fs::create_dir_all(dir).map_err(|error| failed(dir, &error))?;
    let links: Vec<PathBuf> = PLUGINS.iter().map(|(name, _)| dir.join(name)).collect();
    for link in &links {
        if fs::symlink_metadata(link).is_ok_and(|meta| !meta.is_symlink()) {
            return Err(format!(
                "skiff-cni: {} is not a link; remove it first\n",
                link.display()
            ));
        }
    }
    for link in &links {
        // A link is replaced in one step: a runtime may be looking for it right now.
        let draft = link.with_extension("draft");
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&draft, &error));
            }
            _ => {}
        }
        symlink(&executable, &draft).map_err(|error| failed(&draft, &error))?;
        fs::rename(&draft, link).map_err(|error| failed(link, &error))?;
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_made_again_but_foreign_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path()).unwrap();
        install(dir.path()).unwrap();
        assert!(dir.path().join("host-local").is_symlink());
        fs::remove_file(dir.path().join("bridge")).unwrap();
        fs::write(dir.path().join("bridge"), "other").unwrap();
        assert!(install(dir.path()).unwrap_err().contains("bridge"));
        assert_eq!(
            fs::read_to_string(dir.path().join("bridge")).unwrap(),
            "other"
        );
    }
}
