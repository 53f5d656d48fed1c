"""The words that decide what a sentence says of a finding: one table of cues. Names no finding and holds no rule.

`CUES` is read from the top: at a word, the first pattern that fits wins. What each kind does is in `negation.py`:

    deny           denies what follows                       "no", "without", "resolution of"
    deny_back      denies what stands before it              "is not seen", "was ruled out"
    deny_either    denies what stands before it in its part of the list, else what follows     "absent", "resolved"
    deny_aside     denies what follows in its part of the list, else what stands before it     "unlikely"
    doubt, doubt_back, doubt_aside                           the same with doubt: "may", "is possible", "likely"
    affirm, affirm_back    says that what follows, or stands before it, is there    "(+)", "yes"
    removal, removed_back                                    a device that is gone: "removal of", "was removed"
    change, known, degree    words of a finding that is there: "stable", "old", "mild"; a change has a value
    stop           begins another statement                  "but", "with", ";"
    colon, dash, comma, and, or, verb, participle            what divides and joins
    none           says nothing                              "consistent with"
"""

from __future__ import annotations

NEW, WORSE, UNCHANGED, IMPROVED, RESOLVED = "new", "worse", "unchanged", "improved", "resolved"
MILD, MODERATE, SEVERE = "mild", "moderate", "severe"

_ADVERB = r"(?:\w+ly|well|yet|otherwise|currently|any longer|longer|now)"
_SEEN = (
    r"(?:seen|identified|visuali[sz]ed|present|evident|appreciated|noted|demonstrated|detected|"
    r"observed|apparent|found"
    r"|visible|recogni[sz]ed|shown|suspected|suggested|discern(?:ed|ible)|delineated|perceptible|perceived|depicted"
    r"|encountered|revealed|evidenced)"
)
_GONE = r"(?:resol(?:ved?|ving|ution)|clear(?:ed|ance|ing)|disappear(?:ed|ance)?|vanish(?:ed)?|gone)"
_EARLIER = r"(?:prior|previous|last|earlier|comparison|old|older|preceding|most recent|recent)"
_DEGREE = (
    r"(?:\w+ly|acute|appreciable|definite|great|gross|interval|interim|large|major|other|relevant|significant"
    r"|substantial|obvious|convincing|further|marked|real|short[- ]term|evidence of)"
)
_MORE_OR_LESS = (
    r"(?:changed?|changes(?! of)|increased?|decreased?|progress\w*|worsen\w*|improve\w*|difference|larger|smaller"
    r"|bigger|worse|better(?! seen)|enlarging|grown|growth)"
)
_BE = r"(?:is|are|was|were|be|been|being|remains?|seems?|appears?)"
_EXCLUDED = r"(?:excluded|ruled out|discounted|discarded)"
_EXCLUDE = r"(?:exclude|rule out|discount|discard)"

Cue = tuple[str, str | None, str]

_SLIGHTLY = r"(?:slightly|mildly|moderately|minimally|markedly|severely|significantly|substantially|somewhat|much)"

# Tried before the words for findings and places.
EARLY_CUES: tuple[Cue, ...] = (
    # What holds a denial, and says that the finding is there.
    (
        "change",
        UNCHANGED,
        rf"(?:no|not|never|without|yet to|fail\w* to)(?: (?!{_GONE})\w+ly| yet| to| been)? {_GONE}(?: of)?",
    ),
    (
        "change",
        IMPROVED,
        r"(?:no|not|never|without)(?: yet)?(?: been)? (?:complete|full|entire|total|quite|"
        rf"whol)\w*(?: interval)? {_GONE}(?: of)?",
    ),
    (
        "change",
        IMPROVED,
        r"(?:almost|nearly|near|partial\w*|partly|large(?:ly)?|mostly|incomplete\w*|substantial(?:ly)?|"
        r"all but|mainly|somewhat|significantly|in part)(?:[ -]complete\w*|[ -]full\w*|[ -]total\w*|"
        rf"[ -]entire\w*)?(?: interval)? {_GONE}(?: of)?",
    ),
    (
        "change",
        UNCHANGED,
        rf"(?:no|not|without)(?: {_DEGREE}){{0,3}} {_MORE_OR_LESS}(?: in(?: the)?(?: size| appearance|"
        r" extent)?)?(?: of)?",
    ),
    (
        "change",
        NEW,
        rf"(?:not|never)(?: be| been)?(?: {_ADVERB})? {_SEEN} (?:(?:on|in|at)(?: the| an?| any| (?:his|her|"
        rf"their))? {_EARLIER}|previously|before|earlier)",
    ),
    ("change", NEW, rf"(?:previously|formerly) (?:not|un)(?: {_SEEN}|seen|detected)"),
    (
        "none",
        None,
        r"not only|no doubt|that there|without (?:a )?doubt|undoubtedly|not (?:uncommon|unusual)\w*|"
        r"no relevant",
    ),
    ("none", None, rf"(?:ensure|document|confirm|until|assess|monitor|pending|to) (?:\w+ )?{_GONE}(?: of)?"),
    ("none", None, r"(?:consistent|compatible|in keeping|associated|in line|concordant) with"),
    (  # a test of the laboratory is negative, not what the sentence goes on with
        "none",
        None,
        r"(?:pcr|swabs?|cultures?|serology|antigens?|antibod(?:y|ies)|tests?|tested|hiv|covid(?:-19)?)"
        r"(?: (?:is|are|was|were|came back|results?)){0,2} (?:negative|-ve)(?! for)",
    ),
    # Doubt.
    (
        "doubt",
        None,
        r"not(?: be)?(?: \w+ly)? (?:distinguished|differentiated|distinguishable|separated|separable) from",
    ),
    ("doubt", None, rf"(?:{_BE} )?favou?red to"),
    ("doubt_back+doubt", None, r"(?:more )?likely than"),
    ("doubt_back+deny", None, rf"(?:{_BE} )?favou?red over"),
    (
        "doubt_back",
        None,
        rf"not(?: be| been| yet| {_ADVERB}){{0,4}} (?:{_EXCLUDED}|confirmed|(?:evaluated|assessed|included|"
        r"imaged))",
    ),
    (
        "doubt_back",
        None,
        r"(?:to|should|must|may|might|could|can|would|need)(?: also| \w+ly)? be(?: \w+ly|"
        rf" also)? (?:{_EXCLUDED}|considered|suspected|questioned|borne in mind|kept in mind|entertained)",
    ),
    (
        "doubt_back",
        None,
        rf"{_BE} (?:(?!not\b|no\b|now\b)\w+ )?(?:possible|suspected|questioned|questionable|favou?red|"
        r"equivocal|conceivable|queried|considered|postulated|raised)",
    ),
    (
        "doubt_back",
        None,
        rf"(?:{_BE} )?(?:(?:a|an|one|another|the) )?(?:\w+ )?(?:possibility|consideration|"
        r"differential)(?= *(?:[.,;)]|$))|(?:in|on) the differential|(?:of|a|some|"
        rf"clinical) concern(?! (?:for|of|about|that))|{_BE} concerning(?! for)",
    ),
    (
        "doubt_back",
        None,
        r"(?:hard|difficult|impossible|not possible|challenging) to (?:\w+ly )?(?:detect|see|identify|"
        r"appreciate|confirm|evaluate|assess|discern|visuali[sz]e)",
    ),
    ("doubt_back", None, r"if (?:any|present|at all)"),
    (
        "doubt_aside",
        None,
        r"(?:not|hard|difficult|impossible|unable|no reason|challenging|insufficient|inadequate|"
        rf"not possible)(?: to)?(?: {_ADVERB}){{0,2}}(?: to)?(?: {_ADVERB})? {_EXCLUDE}",
    ),
    (
        "doubt",
        None,
        r"(?:history|evaluat\w+|assess(?:ment)?|look\w*|correlat\w+(?: \w+){0,2}|concern\w*|worrisome|"
        r"suspicious|worrying|query|quer(?:y|ied)) (?:of|for|about)|(?:to )?(?:rule out|exclude)|r/o",
    ),
    # Denial.
    ("deny", None, r"(?:doubtful|unlikely|improbable) (?:that|whether|if)(?: there)?"),
    (
        "deny",
        None,
        r"(?:unlikely|improbable|doubtful|not (?:\w+ )?likely) (?:to (?:be|represent|reflect|indicate|"
        r"suggest)|for|due to|related to)|less likely to (?:be|represent|reflect)",
    ),
    ("doubt_aside", None, r"less (?:likely|favou?red)"),
    (
        "deny_aside",
        None,
        r"unlikely|improbable|implausible|doubtful|not (?:\w+ly )?(?:likely|favou?red|thought likely|"
        r"felt likely|suspicious)(?! for)",
    ),
    (
        "deny",
        None,
        r"doubt|nothing (?:\w+ )?(?:to|that|which) (?:\w+ )?(?:suggest|indicate|support|imply|point)\w*|"
        r"fail\w* to (?:show|demonstrate|reveal|identify)|unable to (?:see|identify|detect|demonstrate|"
        r"appreciate)|mistaken for|mimic\w*|simulat\w+",
    ),
    ("deny_back", RESOLVED, rf"no longer(?: be)?(?: {_ADVERB})? {_SEEN}"),
    ("deny_back", None, rf"(?:not|never)(?: be| been)?(?: {_ADVERB}){{0,2}} {_SEEN}"),
    ("deny_back", None, _EXCLUDED),
    ("deny_either", RESOLVED, r"resolved|cleared|disappeared|vanished|gone"),
    ("deny_either", None, r"absent|none|negative(?! (?:for|chest|exam|study))"),
    ("deny", RESOLVED, r"(?:resolution|clearing|clearance|disappearance) of"),
    (
        "deny",
        None,
        r"(?:negative|neg|-ve) for|(?:absence|lack|exclusion) of|(?:free|clear|devoid) (?:of|from)|"
        r"no evidence (?:of|for)|rather than|instead of|as opposed to|in lieu of",
    ),
    # Devices come and go.
    ("removal", None, r"(?:removal|explantation|withdrawal|resection|excision|extraction) of"),
    (
        "known",
        None,
        r"(?:placement|insertion|introduction|re-?insertion|replacement|exchange|implantation|positioning|"
        r"advancement)(?: of)?",
    ),
    (
        "removed_back",
        None,
        r"removed|explanted|discontinued|taken out|pulled(?! back)|withdrawn(?! (?:slightly|by|back|into|"
        r"to|\d|a few|approx\w*|somewhat|partially))",
    ),
)

# Tried after the words for findings and places.
LATE_CUES: tuple[Cue, ...] = (
    (
        "doubt_aside",
        None,
        r"possible|probable|likely|questionable|questioned|suspected|equivocal|favou?red|"
        r"considered(?! (?:typical|characteristic|classic\w*|diagnostic|consistent|compatible|in keeping|"
        r"suspicious|as|an?)\b)",
    ),
    (
        "doubt",
        None,
        r"possibly|probably|may|might|could|perhaps|maybe|question(?: of)?|query|suspicio(?:n|"
        r"us) (?:for|of)|suspicion"
        r"|suspects?|concern\w*|worrisome|worrying|suggest\w*|presum\w+|differential|potential\w*|"
        r"favou?r\w*|possibility of"
        r"|consider(?:ing|ation|ations)?|(?:thought|felt|believed|considered) to|rais\w+ (?:the )?(?:question|"
        r"possibility)|hint of",
    ),
    ("deny", "answer", r"no(?! the)|nil|not"),
    ("deny", RESOLVED, r"no longer"),
    ("deny", None, r"without|w/o|neither|nor|never|denies|nothing"),
    ("affirm_back", None, r"yes|positive(?! (?:pressure|for))"),
    (
        "stop",
        None,
        r"but|however|(?:al)?though|except(?: for)?|aside from|apart from|other than|there|which|while|"
        r"whereas|with|despite"
        r"|following|after|status[- ]post|s/p|nevertheless|nonetheless|additionally|in addition|meanwhile|albeit",
    ),
    # Changes, which only a finding that is there has.
    (
        "change",
        WORSE,
        rf"(?:{_SLIGHTLY} )?(?:increas\w+|enlarging|larger|bigger|worse|worsen\w*|progress(?:ed|ion|"
        r"ing|ive(?:ly)?)|growing|"
        r"grown|deteriorat\w+|exacerbat\w+|greater than (?:before|previously)|"
        r"more (?:extensive|prominent|conspicuous|pronounced|confluent|dense))",
    ),
    (
        "change",
        IMPROVED,
        rf"(?:{_SLIGHTLY} )?(?:decreas\w+|smaller|improv\w+|reduc(?:ed|tion|ing)|diminish\w+|"
        r"regress\w+|resolving|shrunk\w*|"
        r"shrinking|less (?:extensive|prominent|conspicuous|pronounced|confluent|dense)|better(?! (?:seen|"
        r"vis|eval|appre|char|delin|demon|defin|assess)\w*))",
    ),
    (
        "change",
        UNCHANGED,
        r"stable|unchanged|persist\w*|similar|static|unaltered|stably|ongoing|continued|continues|"
        r"remains? (?:present|in place|visible|seen|evident)",
    ),
    ("change", NEW, r"new|newly|development of|developed|appeared"),
    (
        "known",
        None,
        r"chronic\w*|in place|in situ|in (?:\w+ ){0,2}position|well[- ]positioned|terminat\w+|old|"
        r"known|again|long-?standing|pre-?existing|re-?demonstrat\w+|remote|healed|healing|"
        r"confirmed",
    ),
    (
        "degree",
        MODERATE,
        r"(?:mild(?:ly)?|small|slight(?:ly)?)[- ]to[- ]moderate(?:ly)?(?:[- ]sized)?|"
        r"moderate(?:ly)?(?:[- ]sized)?|medium-sized",
    ),
    (
        "degree",
        MILD,
        r"minimal(?:ly)?|trace|tiny|small(?:[- ]sized)?|mild(?:ly)?|slight(?:ly)?|subtle|faint|minor|"
        r"minute|minuscule",
    ),
    (
        "degree",
        SEVERE,
        r"(?:moderate(?:ly)?[- ]to[- ])?(?:severe(?:ly)?|large|marked(?:ly)?|massive(?:ly)?|"
        r"extensive(?:ly)?|huge|sizable|sizeable|gross|pronounced)(?:[- ]sized)?",
    ),
    ("degree", None, r"\d+(?:\.\d+)?(?: ?x ?\d+(?:\.\d+)?)? ?(?:mm|cm)|residual|early|developing"),
    (
        "verb",
        None,
        r"is|are|was|were|has|have|had|remains?|appears?|seems?|looks?|demonstrates?|shows?|contains?|"
        r"represents?|reflects?"
        r"|measures?|includes?",
    ),
    ("participle", None, r"seen|noted|identified|visuali[sz]ed|present|evident"),
    ("or", None, r"and/or|or|versus|vs"),
    ("and", None, r"and|as well as|along with|plus"),
)

# Signs, which need no word boundary.
SIGNS: tuple[Cue, ...] = (
    (
        "none",
        None,
        r", (?:however|though|therefore|moreover|furthermore|in addition|again|too|also|meanwhile|"
        r"nevertheless|though),(?= (?:is|are|was|were|has|have|remains?|appears?|shows?|demonstrates?|can|"
        r"could|does|may|might|looks?|seems?)\b)",
    ),
    ("deny", "answer", r"\(\s*-\s*\)|\[\s*-\s*\]|-ve(?= )(?<=\s-ve)"),
    ("affirm", "answer", r"\(\s*\+\s*\)|\[\s*\+\s*\]|\+ve(?= )"),
    ("doubt_back", "query", r"\?+\)?"),
    ("colon", None, r":(?=\s|$)|=(?=\s)"),
    ("dash", None, r"-+(?=\s\S)(?<=[\s-]-)"),
    ("comma", None, r","),
    ("stop", None, r";"),
)
