"""The vocabulary of the synthetic wards: problems, medications and ways to write of them.

Every problem may appear in every role (treated now, treated before, excluded, stable, a
relative's), under the same names and beside the same medications, so that words alone do not give
the department away. Medications and symptoms are shared between departments for the same reason.

Not covered: medicine. The notes are plausible, not correct, and no dose in them is advice.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A condition: its interchangeable names, what is given for it, and how one lives with it.

    ``known`` and ``usual`` are names and medications of the long-standing form; empty for a
    condition that passes.
    """

    names: tuple[str, ...]
    medications: tuple[str, ...]
    known: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()


def _problem(names: str, medications: str, known: str = "", usual: str = "") -> Problem:
    return Problem(
        *(tuple(filter(None, part.split("|"))) for part in (names, medications, known, usual))
    )


PROBLEMS: dict[str, tuple[Problem, ...]] = {
    "cardiology": (
        _problem(
            "heart failure|decompensated heart failure|congestive cardiac failure",
            "furosemide|bisoprolol|ramipril|spironolactone",
            "heart failure|congestive cardiac failure",
            "bisoprolol|ramipril|furosemide",
        ),
        _problem(
            "atrial fibrillation|fast atrial fibrillation|AF",
            "apixaban|bisoprolol|amiodarone|digoxin",
            "atrial fibrillation|AF",
            "apixaban|bisoprolol|digoxin",
        ),
        _problem(
            "NSTEMI|acute coronary syndrome|myocardial infarction",
            "aspirin|ticagrelor|atorvastatin|enoxaparin",
            "ischaemic heart disease|an old myocardial infarction",
            "aspirin|atorvastatin|bisoprolol",
        ),
        _problem("pericarditis|acute pericarditis", "colchicine|ibuprofen|prednisolone"),
        _problem(
            "infective endocarditis|endocarditis of the aortic valve",
            "gentamicin|flucloxacillin|ceftriaxone",
        ),
    ),
    "endocrinology": (
        _problem(
            "diabetic ketoacidosis|DKA|ketoacidosis",
            "insulin|fluid therapy|potassium chloride",
        ),
        _problem(
            "type 2 diabetes|uncontrolled diabetes|T2DM",
            "metformin|insulin|empagliflozin",
            "type 2 diabetes|T2DM",
            "metformin|insulin|empagliflozin",
        ),
        _problem(
            "thyrotoxicosis|Graves disease|hyperthyroidism",
            "carbimazole|propranolol|prednisolone",
            "Graves disease|hyperthyroidism",
            "carbimazole|propranolol",
        ),
        _problem(
            "adrenal insufficiency|Addisonian crisis",
            "hydrocortisone|fluid therapy",
            "adrenal insufficiency|Addison disease",
            "hydrocortisone|fludrocortisone",
        ),
        _problem(
            "hyponatraemia|SIADH|severe hyponatraemia",
            "tolvaptan|fluid therapy",
        ),
    ),
    "gastroenterology": (
        _problem(
            "decompensated cirrhosis|liver cirrhosis|alcoholic liver disease",
            "spironolactone|furosemide|lactulose|propranolol",
            "liver cirrhosis|alcoholic liver disease",
            "spironolactone|lactulose|propranolol",
        ),
        _problem(
            "upper GI bleed|bleeding duodenal ulcer|peptic ulcer disease",
            "pantoprazole|omeprazole|tranexamic acid",
            "peptic ulcer disease",
            "pantoprazole|omeprazole",
        ),
        _problem(
            "acute pancreatitis|gallstone pancreatitis",
            "fluid therapy|morphine|ceftriaxone",
        ),
        _problem(
            "ulcerative colitis|flare of colitis|Crohn disease",
            "prednisolone|mesalazine|azathioprine|infliximab",
            "ulcerative colitis|Crohn disease",
            "mesalazine|azathioprine|infliximab",
        ),
        _problem("cholangitis|ascending cholangitis", "ceftriaxone|metronidazole|gentamicin"),
    ),
    "haematology": (
        _problem(
            "deep vein thrombosis|DVT|femoral vein thrombosis",
            "apixaban|enoxaparin|warfarin",
            "recurrent DVT|a clotting disorder",
            "warfarin|apixaban",
        ),
        _problem(
            "iron deficiency anaemia|symptomatic anaemia|severe anaemia",
            "ferric carboxymaltose|ferrous sulfate|pantoprazole",
            "iron deficiency anaemia",
            "ferrous sulfate",
        ),
        _problem(
            "multiple myeloma|relapsed myeloma",
            "bortezomib|dexamethasone|zoledronic acid",
            "multiple myeloma",
            "bortezomib|zoledronic acid",
        ),
        _problem(
            "immune thrombocytopenia|ITP|thrombocytopenia",
            "prednisolone|immunoglobulin|tranexamic acid",
            "ITP|immune thrombocytopenia",
            "prednisolone",
        ),
        _problem(
            "neutropenic fever|febrile neutropenia",
            "piperacillin-tazobactam|filgrastim|gentamicin",
        ),
    ),
    "infectious_diseases": (
        _problem(
            "cellulitis|cellulitis of the leg|spreading cellulitis",
            "flucloxacillin|clindamycin|ceftriaxone",
            "recurrent cellulitis",
            "flucloxacillin",
        ),
        _problem(
            "staphylococcal bacteraemia|bloodstream infection|S. aureus bacteraemia",
            "flucloxacillin|vancomycin|daptomycin",
        ),
        _problem("influenza|influenza A|seasonal flu", "oseltamivir|paracetamol"),
        _problem("malaria|falciparum malaria", "artesunate|doxycycline|paracetamol"),
        _problem(
            "spinal osteomyelitis|discitis|vertebral osteomyelitis",
            "vancomycin|ceftriaxone|clindamycin",
        ),
    ),
    "nephrology": (
        _problem(
            "acute kidney injury|AKI|acute renal failure",
            "fluid therapy|furosemide|sodium bicarbonate",
        ),
        _problem(
            "chronic kidney disease|CKD stage 4|advanced CKD",
            "epoetin|sodium bicarbonate|furosemide|ramipril",
            "chronic kidney disease|CKD stage 4|advanced CKD",
            "epoetin|sodium bicarbonate|ramipril",
        ),
        _problem(
            "nephrotic syndrome|membranous nephropathy",
            "prednisolone|furosemide|ramipril|rituximab",
            "membranous nephropathy",
            "ramipril|prednisolone",
        ),
        _problem(
            "hyperkalaemia|severe hyperkalaemia", "calcium gluconate|insulin|sodium bicarbonate"
        ),
        _problem(
            "lupus nephritis|glomerulonephritis",
            "mycophenolate|prednisolone|cyclophosphamide",
            "lupus nephritis",
            "mycophenolate|prednisolone",
        ),
    ),
    "neurology": (
        _problem(
            "ischaemic stroke|cerebral infarction|stroke",
            "aspirin|alteplase|atorvastatin|clopidogrel",
            "an old stroke|ischaemic stroke",
            "clopidogrel|atorvastatin",
        ),
        _problem(
            "epilepsy|generalised seizures|status epilepticus",
            "levetiracetam|lorazepam|valproate",
            "epilepsy",
            "levetiracetam|valproate",
        ),
        _problem(
            "multiple sclerosis|relapse of multiple sclerosis",
            "methylprednisolone|natalizumab|baclofen",
            "multiple sclerosis",
            "natalizumab|baclofen",
        ),
        _problem(
            "bacterial meningitis|meningitis|meningoencephalitis",
            "ceftriaxone|dexamethasone|aciclovir",
        ),
        _problem(
            "myasthenia gravis|Guillain-Barre syndrome",
            "immunoglobulin|prednisolone|pyridostigmine",
            "myasthenia gravis",
            "pyridostigmine|prednisolone",
        ),
    ),
    "respiratory": (
        _problem(
            "COPD|exacerbation of COPD|chronic obstructive pulmonary disease",
            "prednisolone|salbutamol|doxycycline|tiotropium",
            "COPD|chronic obstructive pulmonary disease",
            "tiotropium|salbutamol",
        ),
        _problem(
            "pneumonia|community-acquired pneumonia|lobar pneumonia",
            "amoxicillin|doxycycline|ceftriaxone",
        ),
        _problem(
            "asthma|severe asthma|exacerbation of asthma",
            "salbutamol|prednisolone|magnesium sulphate",
            "asthma|severe asthma",
            "salbutamol|prednisolone",
        ),
        _problem(
            "pulmonary embolism|PE|bilateral pulmonary emboli", "apixaban|enoxaparin|alteplase"
        ),
        _problem(
            "interstitial lung disease|pulmonary fibrosis",
            "prednisolone|nintedanib|mycophenolate",
            "interstitial lung disease|pulmonary fibrosis",
            "nintedanib|mycophenolate",
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class SharedProblem:
    """A problem that two departments treat; a finding tells which, where the note holds one."""

    problem: Problem
    findings: dict[str, tuple[str, ...]]


SHARED: tuple[SharedProblem, ...] = (
    SharedProblem(
        _problem("syncope|recurrent syncope|collapse", "bisoprolol|levetiracetam"),
        {
            "cardiology": (
                "Telemetry showed pauses of four seconds and a pacemaker was fitted.",
                "The ECG showed complete heart block.",
            ),
            "neurology": (
                "The EEG was abnormal and matched the witnessed jerking.",
                "A tongue bite and a slow recovery pointed away from the heart.",
            ),
        },
    ),
    SharedProblem(
        _problem("pleural effusion|bilateral pleural effusions", "furosemide|ceftriaxone"),
        {
            "cardiology": (
                "The fluid was a transudate and went with diuresis; the ejection fraction was 30%.",
                "The echo showed a poor left ventricle.",
            ),
            "respiratory": (
                "The fluid was an exudate and a chest drain was left for three days.",
                "Spirometry is booked and the drain site is clean.",
            ),
        },
    ),
    SharedProblem(
        _problem("urosepsis|pyelonephritis", "gentamicin|ceftriaxone|fluid therapy"),
        {
            "nephrology": (
                "The obstructed kidney was drained and creatinine halved.",
                "Two sessions of haemodialysis were needed.",
            ),
            "infectious_diseases": (
                "Blood cultures grew a resistant coliform and outpatient antibiotics were set up.",
                "Travel history was taken and isolation was lifted on day three.",
            ),
        },
    ),
    SharedProblem(
        _problem("diabetic foot infection|infected foot ulcer", "clindamycin|insulin|vancomycin"),
        {
            "endocrinology": (
                "Glucose control was the main task and the basal dose was doubled.",
                "HbA1c was 112 and the regimen was rebuilt.",
            ),
            "infectious_diseases": (
                "Deep swabs grew MRSA and six weeks of antibiotics are planned by line.",
                "Antibiotics were narrowed to the culture result.",
            ),
        },
    ),
    SharedProblem(
        _problem("anaemia with melaena|occult blood loss", "ferrous sulfate|pantoprazole"),
        {
            "gastroenterology": (
                "Endoscopy found an angiodysplasia, which was coagulated.",
                "Colonoscopy removed a bleeding polyp.",
            ),
            "haematology": (
                "Clotting studies showed an acquired factor VIII inhibitor.",
                "The marrow showed dysplasia and counts will be watched.",
            ),
        },
    ),
)

# What brings a patient in; every symptom belongs to several departments.
SYMPTOMS: dict[str, tuple[str, ...]] = {
    department: tuple(symptoms.split("|"))
    for department, symptoms in {
        "cardiology": "shortness of breath|chest pain|palpitations|leg swelling|dizziness|collapse",
        "endocrinology": "fatigue|weight loss|palpitations|vomiting|new confusion|thirst",
        "gastroenterology": "abdominal pain|vomiting|weight loss|poor oral intake|fever|dizziness",
        "haematology": "fatigue|weight loss|leg swelling|fever|shortness of breath|back pain",
        "infectious_diseases": "fever|rigors|leg swelling|new confusion|back pain|poor oral intake",
        "nephrology": "reduced urine output|leg swelling|fatigue|vomiting|poor oral intake|thirst",
        "neurology": "new confusion|headache|a fall at home|collapse|dizziness|general weakness",
        "respiratory": "shortness of breath|chest pain|fever|fatigue|a fall at home|rigors",
    }.items()
}

TESTS = ("CT", "the scan", "the blood test", "the specialist review", "further testing", "imaging")

WHEN = (
    "last year",
    "in March",
    "two years ago",
    "in 2019",
    "on the previous admission",
    "in the spring",
    "six months ago",
    "elsewhere in June",
)

RELATIVES = ("mother", "father", "brother", "sister", "daughter")

# Templates by role. Capitals in braces are slots: P the problem treated now, H and I history, R
# what was excluded, Q treated before, F a relative's; the same letter with M (or N) is a medication
# for it. Each wording of one role has a near twin in another, so that no word stands for a role.
OPENING = (
    "{AGE} year old {SEX} admitted with {S}.",
    "{AGE} year old {SEX} brought in by ambulance with {S} and {T}.",
    "This {AGE} year old {SEX} came to the emergency department with {S}.",
    "{AGE} year old {SEX} referred by the GP for {S} over {DAYS} days.",
    "{SEX}, {AGE}, presented with {T} and {S}.",
)

TREATED = (
    "Treated for {P} with {PM} and improved.",
    "{P} was confirmed by {TEST} and {PM} was started.",
    "The picture was that of {P}, and {PM} was given with good effect.",
    "Findings were in keeping with {P}; {PM} was started on day one.",
    "{TEST} showed {P}, for which {PM} and {PN} were given.",
    "The cause turned out to be {P}; improved on {PM}.",
    "Symptoms settled once {P} was recognised and {PM} begun.",
    "Main problem this time was {P}, managed with {PM}.",
    "After discussion this was managed as {P} with {PM}, then {PN}.",
    "{PM} was commenced for {P} and continued at discharge.",
    "Rather than {R}, this proved to be {P}, and {PM} was added.",
    "Stay dominated by {P}, slow response to {PM}.",
)

EXCLUDED = (
    "No evidence of {R}.",
    "{R} was not confirmed by {TEST} and {RM} was stopped.",
    "The first impression was that of {R}, and {RM} was given until {TEST} was normal.",
    "Findings were not in keeping with {R}; {RM} was held.",
    "{TEST} did not show {R}.",
    "The cause was thought to be {R}, but {TEST} was clear.",
    "{R} was suspected and later excluded.",
    "Started on {RM} for presumed {R}, which {TEST} ruled out.",
    "After discussion {R} was considered unlikely and {RM} was not needed.",
    "Initially managed as {R}, without response to {RM}; diagnosis revised.",
)

PREVIOUS = (
    "Treated for {Q} with {QM} {WHEN}, with good recovery.",
    "{Q} was confirmed {WHEN} and {QM} was given then; no recurrence.",
    "Of note {Q} {WHEN}, for which {QM} was given.",
    "Admitted {WHEN} with {Q}, since settled.",
    "Main problem {WHEN} was {Q}, managed with {QM}; not active now.",
    "A course of {QM} for {Q} was completed {WHEN}.",
)

HISTORY = (
    "Background of {H} and {I}, on {HM}.",
    "Past history: {H}, {I}.",
    "Known {H}, takes {HM}.",
    "{H} remained stable on {HM} and needed no change.",
    "Long-standing {H} and {I}; usual {HM} continued.",
    "Usual {HM} for {H} was continued at discharge.",
    "{H} not active this time; {I} in the past.",
)

FAMILY = (
    "{REL} had {F}.",
    "Family history of {F}.",
    "Worried about {F}, as the {REL} died of it; reassured.",
)

CLOSING = (
    "Discharged home, GP to repeat bloods in {DAYS} days.",
    "Home with follow-up in clinic in {DAYS} weeks.",
    "Mobile and eating at discharge.",
    "Discharged to own home with family support.",
    "Review in {DAYS} weeks, return if worse.",
    "No changes to other medication.",
)
