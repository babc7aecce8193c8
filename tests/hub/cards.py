"""What the Hub demands of a card's YAML header."""

import re

import yaml

LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "openrail", "other"}
LICENSES |= {"unknown", "unlicense", "llama3.1", "gemma"}
TASKS = {"text-generation", "text-classification", "token-classification", "feature-extraction", "question-answering"}
NAMES = {"tags", "datasets", "metrics", "language", "license", "base_model"}
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)?|code|multilingual")
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def problems_of(card: str) -> tuple[list[str], list[str]]:
    """The errors for which the Hub refuses a card, and the warnings with which it takes one."""
    header = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(\r?\n|$)", card, re.DOTALL)
    if header is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(header[1])
    except yaml.YAMLError as error:
        return [f"the yaml cannot be read: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ['"metadata" must be an object'], []
    errors = [*_errors_of_names(data), *_errors_of_results(data.get("model-index"))]
    task = data.get("pipeline_tag")
    warnings = [f'"pipeline_tag" {task!r} is no task of the Hub'] if task is not None and task not in TASKS else []
    return errors, warnings


def _errors_of_names(data: dict[str, object]) -> list[str]:
    errors = []
    for key in NAMES & data.keys():
        values = data[key] if isinstance(data[key], list) else [data[key]]
        errors += [f'"{key}[{i}]" must be a string' for i, value in enumerate(values) if not isinstance(value, str)]
        text = [value for value in values if isinstance(value, str)]
        if key == "license":
            errors += [f'"license" must be one of the known licenses, not {v!r}' for v in text if v not in LICENSES]
        elif key == "language":
            pattern = r"[a-z]{2,3}(-[A-Za-z]+)?|code|multilingual"
            errors += [
                f'"language" {value!r} must be an ISO 639 code' for value in text if not re.fullmatch(pattern, value)
            ]
        elif key in ("datasets", "base_model"):
            errors += [f'"{key}" {value!r} is no id of the Hub' for value in text if not REPOSITORY.fullmatch(value)]
    for key in ("library_name", "pipeline_tag"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    return errors


def _errors_of_results(index: object) -> list[str]:
    if index is None:
        return []
    if not isinstance(index, list) or not all(isinstance(model, dict) for model in index):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        at = f"model-index[{i}]"
        if not isinstance(model.get("name"), str) or not model["name"]:
            errors.append(f'"{at}.name" is required')
        for j, result in enumerate(model.get("results") or []):
            errors += _errors_of_result(result, f"{at}.results[{j}]")
    return errors


def _errors_of_result(result: object, at: str) -> list[str]:
    if not isinstance(result, dict):
        return [f'"{at}" must be an object']
    required = [("task", "type"), ("dataset", "type"), ("dataset", "name")]
    errors = [
        f'"{at}.{part}.{key}" is required'
        for part, key in required
        if not isinstance(result.get(part), dict) or not isinstance(result[part].get(key), str)
    ]
    kind = (result.get("dataset") or {}).get("type")
    if isinstance(kind, str) and not REPOSITORY.fullmatch(kind):
        errors.append(f'"{at}.dataset.type" {kind!r} is no id of the Hub')
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*errors, f'"{at}.metrics" is required']
    for k, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
            errors.append(f'"{at}.metrics[{k}].type" is required')
        elif metric.get("value") is None:
            errors.append(f'"{at}.metrics[{k}].value" is required')
    return errors
