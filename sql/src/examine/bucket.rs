//! Does the store keep what a commit relies on: an object that is put only if it is absent, one
//! winner among many who try, and what was written seen by the next read and the next listing.

use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt, PutMode, PutOptions};

use super::{Finding, Severity};
use crate::Store;

/// Who tries to create one object at the same time.
const RIVALS: usize = 8;
/// Folder of the probe; readers of tables pass over names that begin so.
const FOLDER: &str = "_tidegate_doctor";

/// Tries the store out, in a folder that `unique` names, and removes what it wrote.
pub async fn probe(store: &Store, unique: &str) -> Vec<Finding> {
    let folder = Path::from_iter([FOLDER, unique]);
    let mut findings = Vec::new();
    if let Err(error) = attempt(store, &folder, &mut findings).await {
        findings.push(refused(&error));
    }
    if let Err(error) = clean_up(store, &folder).await {
        let text = format!("test objects below {folder} could not be removed: {error}");
        let finding = Finding::new(Severity::Warn, "cleaning up", text).at(&folder);
        let change = "let this user delete objects: vacuum needs it too; then remove the folder";
        findings.push(finding.change(change));
    }
    findings
}

async fn create(store: &Store, path: &Path, text: String) -> Result<bool, StoreError> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match store.objects().put_opts(path, text.into(), options).await {
        Ok(_) => Ok(true),
        Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn attempt(
    store: &Store,
    folder: &Path,
    findings: &mut Vec<Finding>,
) -> Result<(), StoreError> {
    let unsafe_store = "two writers could commit the same version: rows would be lost";
    let advice = "use a store with If-None-Match (S3, MinIO, R2, Ceph from Tentacle on), or a disk";
    let first = folder.clone().join("first");
    let made = create(store, &first, "first".into()).await?;
    let again = create(store, &first, "second".into()).await?;
    findings.push(match (made, again) {
        (true, false) => Finding::new(Severity::Ok, "put if absent", "the second put is refused"),
        _ => Finding::new(Severity::Fail, "put if absent", "the second put is taken too")
            .at(&first)
            .means(unsafe_store)
            .change(advice),
    });
    let read = store.objects().get(&first).await?.bytes().await?;
    let listed: Vec<Path> =
        store.objects().list(Some(folder)).map_ok(|meta| meta.location).try_collect().await?;
    let problems = [
        (read != "first", "a read after a write gives something else"),
        (!listed.contains(&first), "a listing after a write does not show it"),
    ];
    let seen: Vec<&str> = problems.iter().filter(|(bad, _)| *bad).map(|(_, text)| *text).collect();
    findings.push(match seen.is_empty() {
        true => Finding::new(Severity::Ok, "consistency", "reads and listings see each write"),
        false => Finding::new(Severity::Fail, "consistency", seen.join("; "))
            .at(&first)
            .means("readers could miss commits, and a writer could write a version again")
            .change(advice),
    });
    let contested = folder.clone().join("contested");
    let rivals = (0..RIVALS).map(|rival| create(store, &contested, rival.to_string()));
    let outcomes = join_all(rivals).await.into_iter().collect::<Result<Vec<bool>, _>>()?;
    let winners: Vec<usize> = (0..RIVALS).filter(|rival| outcomes[*rival]).collect();
    let kept = store.objects().get(&contested).await?.bytes().await?;
    let right = winners.len() == 1 && kept == winners[0].to_string();
    findings.push(match right {
        true => Finding::new(Severity::Ok, "rivals", format!("one of {RIVALS} wins, and stays")),
        false => {
            let text = format!("{} of {RIVALS} were told that they won", winners.len());
            let finding = Finding::new(Severity::Fail, "rivals", text).at(&contested);
            finding.means(unsafe_store).change(advice)
        }
    });
    Ok(())
}

/// Why the store cannot be used, with what to do.
fn refused(error: &StoreError) -> Finding {
    let text = error.to_string();
    let has = |word: &str| text.contains(word);
    let (check, change) = match error {
        // Where none are set, they are asked for at the address at which clouds have a role's.
        _ if has("169.254.169.254") => (
            "credentials",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: there are none, and this machine has \
             no role",
        ),
        StoreError::Unauthenticated { .. } => {
            ("credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role")
        }
        StoreError::PermissionDenied { .. } => (
            "permissions",
            "allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket below the prefix",
        ),
        _ if has("NoSuchBucket") || has("bucket does not exist") => {
            ("bucket", "create the bucket, or correct the URL (--tables s3://BUCKET/PREFIX)")
        }
        _ if has("InvalidAccessKeyId") || has("SignatureDoesNotMatch") || has("redentials") => {
            ("credentials", "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        }
        _ if has("os error 13") || has("ermission denied") => {
            ("permissions", "let this user write into the folder")
        }
        _ => ("store", "check AWS_ENDPOINT_URL, AWS_REGION and the network (AWS_ALLOW_HTTP=true)"),
    };
    Finding::new(Severity::Fail, check, text)
        .means("tables cannot be written: the journal grows up to its budget, then sources wait")
        .change(change)
}

async fn clean_up(store: &Store, folder: &Path) -> Result<(), StoreError> {
    let listed: Vec<Path> =
        store.objects().list(Some(folder)).map_ok(|meta| meta.location).try_collect().await?;
    let locations = futures::stream::iter(listed).map(Ok).boxed();
    store.objects().delete_stream(locations).try_collect::<Vec<_>>().await?;
    if let Some(root) = store.folder() {
        // Folders exist on a local disk only; one that another doctor is using stays.
        let _ = std::fs::remove_dir(root.join(folder.as_ref()));
        let _ = std::fs::remove_dir(root.join(FOLDER));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_credentials_are_named_and_not_the_endpoint() {
        let source = "Error performing PUT http://169.254.169.254/latest/api/token in 1s".into();
        let finding = refused(&StoreError::Generic { store: "S3", source });
        assert_eq!(finding.check, "credentials");
        assert!(finding.change[0].contains("set AWS_ACCESS_KEY_ID"), "{finding:?}");
    }
}
